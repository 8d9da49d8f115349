// NT-Xent and its gradient in three launches: loss.py on a GPU, with nothing of size (2N)² in memory.
//
//     normalise   one warp an image:         u, |z| and the cosine of the positive
//     row_sums    one block ROWS anchors:    walks over all columns; the softmax's denominators, the loss
//     gradient    one block ROWS anchors:    walks over all columns again; du, and through the norm dz
//
// The tags (5.2) ... are the equations of docs/05_nt_xent.md; loss.py says them in a page of Python.
// A block owns its rows: there are no atomics, sums come in a fixed order, and the result is the same bit for
// bit every time. The price is that symmetry goes unused: 6 n²D operations instead of 4 n²D, n = 2N.
// Compiled without fast-math: exp, log, division and square root are the accurate ones.
//
// A tile of cosines is ROWS × COLUMNS; each of its THREADS holds 4 × 8 of it in registers:
// rows 4·ty … 4·ty+3, columns 4·tx … 4·tx+3 and 64 + those, with tx = thread mod 16, ty = thread / 16.
// tests/fibres.h runs this very file on a CPU.

#define ROWS 64      // anchors of a block
#define COLUMNS 128  // columns of a tile; also how many entries of du are gathered at a time
#define SLAB 16      // steps of the inner dimension that are in shared memory at a time
#define THREADS 256
#define PAD 4        // keeps rows of shared memory at 16-byte boundaries, and off each other's banks
#define ALL_LANES 0xffffffffu

struct Slabs { float rows[SLAB][ROWS + PAD]; float columns[SLAB][COLUMNS + PAD]; };  // both operands, inner index first

// ── Launch 1: unit rows ─────────────────────────────────────────────────────────────────────────────────────────────

__device__ float warp_max(float x) {
    for (int step = 16; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

__device__ double warp_sum(double x) {
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// z (D) -> u (width), with zeros beyond D; |z| = norm · scale as in loss.unit_rows                            (5.2)
__device__ void unit_row(const float* z, float* u, int D, int width, float* norm, float* scale) {
    int lane = threadIdx.x % 32;
    float largest = 0, spoilt = 0;  // fmaxf passes over a NaN; so it is gathered apart: ∞·0 and NaN·0 are NaN
    for (int d = lane; d < D; d += 32) {
        largest = fmaxf(largest, fabsf(z[d]));
        spoilt += z[d] * 0.0f;
    }
    float whole = warp_max(largest) + (float)warp_sum(spoilt);
    if (whole < 1.17549435e-38f) whole = 0;  // too short to have a direction
    double squares = 0;
    for (int d = lane; d < D; d += 32) {
        float x = whole == 0 ? 0 : z[d] / whole;
        squares += (double)x * x;
    }
    squares = warp_sum(squares);
    float length = whole == 0 ? 1 : (float)sqrt(squares);
    for (int d = lane; d < width; d += 32) u[d] = d < D && whole != 0 ? z[d] / whole / length : 0;
    if (lane == 0) {
        *norm = length;
        *scale = whole;
    }
}

// za, zb (N, D) -> u (2N, width); norm, scale, positive (2N). One warp an image.
extern "C" __global__ void __launch_bounds__(THREADS)
normalise(const float* za, const float* zb, float* u, float* norm, float* scale, float* positive, int N, int D,
          int width) {
    int image = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (image >= N) return;  // the whole warp: none is missed at a shuffle
    int partner = image + N;
    float *ua = u + (size_t)image * width, *ub = u + (size_t)partner * width;
    unit_row(za + (size_t)image * D, ua, D, width, norm + image, scale + image);
    unit_row(zb + (size_t)image * D, ub, D, width, norm + partner, scale + partner);
    double cosine = 0;  // each lane reads what it wrote itself
    for (int d = lane; d < D; d += 32) cosine += (double)ua[d] * ub[d];
    cosine = warp_sum(cosine);
    if (lane == 0) positive[image] = positive[partner] = (float)cosine;
}

// ── Tiles ───────────────────────────────────────────────────────────────────────────────────────────────────────────

__device__ int own_row(int r) { return 4 * (threadIdx.x / 16) + r; }                               // r in 0 … 3
__device__ int own_column(int c) { return c / 4 * 64 + 4 * (threadIdx.x % 16) + c % 4; }           // c in 0 … 7

// part[r][c] += Σ_k rows[k][own_row(r)] · columns[k][own_column(c)] over one slab
__device__ void multiply(const float (*rows)[ROWS + PAD], const float (*columns)[COLUMNS + PAD], float (&part)[4][8]) {
#pragma unroll
    for (int k = 0; k < SLAB; k++) {
        float4 a = *(const float4*)&rows[k][own_row(0)];
        float4 b = *(const float4*)&columns[k][own_column(0)], c = *(const float4*)&columns[k][own_column(4)];
        float left[4] = {a.x, a.y, a.z, a.w}, right[8] = {b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w};
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int s = 0; s < 8; s++) part[r][s] += left[r] * right[s];
    }
}

__device__ void clear(float (&part)[4][8]) {
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int c = 0; c < 8; c++) part[r][c] = 0;
}

// Four neighbours of an array of unit rows, or zeros outside of it.
__device__ float4 quad(const float* u, int row, int d, int n, int width) {
    if (row < n && d < width) return *(const float4*)&u[(size_t)row * width + d];
    return make_float4(0, 0, 0, 0);
}

__device__ void turn(float4 x, float* column, int stride) {  // a row's four entries, one below the other
    column[0] = x.x, column[stride] = x.y, column[2 * stride] = x.z, column[3 * stride] = x.w;
}

// The tile of cosines of the rows from `top` and the columns from `left`                                      (5.3)
// The next slab is on its way from global memory while this one is multiplied.
__device__ void cosines(const float* u, int top, int left, int n, int width, Slabs& shared, float (&cosine)[4][8]) {
    int row = threadIdx.x / 4, k = threadIdx.x % 4 * 4;
    clear(cosine);
    float4 a = quad(u, top + row, k, n, width);
    float4 b = quad(u, left + row, k, n, width), c = quad(u, left + row + 64, k, n, width);
    for (int slab = 0; slab < width; slab += SLAB) {
        __syncthreads();  // the slab before has been read
        turn(a, &shared.rows[k][row], ROWS + PAD);
        turn(b, &shared.columns[k][row], COLUMNS + PAD);
        turn(c, &shared.columns[k][row + 64], COLUMNS + PAD);
        __syncthreads();  // this slab has been written
        a = quad(u, top + row, slab + SLAB + k, n, width);
        b = quad(u, left + row, slab + SLAB + k, n, width);
        c = quad(u, left + row + 64, slab + SLAB + k, n, width);
        multiply(shared.rows, shared.columns, cosine);
    }
}

// Whether column j is a negative of anchor i: neither itself nor its positive, and both exist.
__device__ bool is_negative(int i, int j, int n) {
    int partner = i < n / 2 ? i + n / 2 : i - n / 2;
    return i < n && j < n && j != i && j != partner;
}

// ── Launch 2: the denominators and the loss ─────────────────────────────────────────────────────────────────────────

// u, positive -> per anchor: shift r, weight w = 1/denominator, q, loss; (2N) each
extern "C" __global__ void __launch_bounds__(THREADS)
row_sums(const float* u, const float* positive, float* shift, float* weight, float* q, float* loss, float invtau,
         int n, int width) {
    __shared__ Slabs shared;
    int top = blockIdx.x * ROWS;
    float here[4], highest[4] = {0, 0, 0, 0}, sum[4];  // the positive's margin is 0: start from it
    for (int r = 0; r < 4; r++) {
        here[r] = top + own_row(r) < n ? positive[top + own_row(r)] : 0;
        sum[r] = here[r] * 0.0f;  // NaN if the positive is: it counts even where there is no negative
    }
    float tile[4][8];
    for (int left = 0; left < n; left += COLUMNS) {
        cosines(u, top, left, n, width, shared, tile);
#pragma unroll
        for (int r = 0; r < 4; r++) {
            int i = top + own_row(r);
            float before = highest[r], part = 0;
#pragma unroll
            for (int c = 0; c < 8; c++) {
                tile[r][c] = (tile[r][c] - here[r]) * invtau;  //                                              (5.4)
                if (is_negative(i, left + own_column(c), n)) highest[r] = fmaxf(highest[r], tile[r][c]);
            }
            if (highest[r] > before) sum[r] *= expf(before - highest[r]);
#pragma unroll
            for (int c = 0; c < 8; c++)
                if (is_negative(i, left + own_column(c), n)) part += expf(tile[r][c] - highest[r]);
            sum[r] += part;
        }
    }
#pragma unroll
    for (int r = 0; r < 4; r++) {
        float all = highest[r], negatives;
        for (int step = 8; step; step /= 2) all = fmaxf(all, __shfl_xor_sync(ALL_LANES, all, step));  // 16 lanes a row
        negatives = sum[r] * expf(highest[r] - all);
        for (int step = 8; step; step /= 2) negatives += __shfl_xor_sync(ALL_LANES, negatives, step);
        int i = top + own_row(r);
        if (threadIdx.x % 16 == 0 && i < n) {
            double total = negatives + exp(-(double)all);  // the positive included
            shift[i] = all;
            weight[i] = (float)(1 / total);
            q[i] = (float)(negatives / total);  //                                                             (5.8)
            loss[i] = (float)(all + log1p(negatives + expm1(-(double)all)));  //                               (5.6)
        }
    }
}

// ── Launch 3: the gradient ──────────────────────────────────────────────────────────────────────────────────────────

__device__ float probability(float cosine, float positive, float shift, float weight, float invtau) {
    return expf((cosine - positive) * invtau - shift) * weight;  //                                            (5.7)
}

// One warp adds up the loss, in a fixed order.                                                                (5.1)
__device__ void mean(const float* loss, float* value, int n) {
    if (threadIdx.x >= 32) return;
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += 32) sum += loss[i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) *value = (float)(sum / n);
}

// all of the above -> value (1), dz (2N, D); factor = 1/(2Nτ). One block more than the rows need: it takes the mean.
extern "C" __global__ void __launch_bounds__(THREADS)
gradient(const float* u, const float* norm, const float* scale, const float* positive, const float* shift,
         const float* weight, const float* q, const float* loss, float* value, float* dz, float invtau, float factor,
         int n, int D, int width) {
    __shared__ Slabs shared;
    __shared__ float m[COLUMNS][ROWS + PAD];  // P + Pᵀ of a tile, column by column
    int top = blockIdx.x * ROWS;
    if (top >= n) {
        mean(loss, value, n);
        return;
    }
    float along[4] = {0, 0, 0, 0};  // this thread's part of ⟨u, du⟩ of its rows
    for (int start = 0; start < D; start += COLUMNS) {  // COLUMNS entries of du at a time
        float du[4][8], tile[4][8];
        clear(du);
        for (int left = 0; left < n; left += COLUMNS) {
            cosines(u, top, left, n, width, shared, tile);
            for (int c = 0; c < 8; c++) {
                int j = left + own_column(c);
                float pj = j < n ? positive[j] : 0, sj = j < n ? shift[j] : 0, wj = j < n ? weight[j] : 0;
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    int i = top + own_row(r);
                    float both = 0;
                    if (is_negative(i, j, n))
                        both = probability(tile[r][c], positive[i], shift[i], weight[i], invtau)
                             + probability(tile[r][c], pj, sj, wj, invtau);
                    m[own_column(c)][own_row(r)] = both;
                }
            }
            // This tile's part of (P + Pᵀ) u is summed by itself: long sums of small terms would lose digits.
            clear(tile);
            int line = threadIdx.x / 32, d = threadIdx.x % 32 * 4;
            float4 a = quad(u, left + line, start + d, n, width), b = quad(u, left + line + 8, start + d, n, width);
            for (int slab = 0; slab < COLUMNS; slab += SLAB) {
                __syncthreads();  // the slab before has been read
                *(float4*)&shared.columns[line][d] = a;
                *(float4*)&shared.columns[line + 8][d] = b;
                __syncthreads();  // this slab, and at first m, have been written
                int next = slab + SLAB < COLUMNS ? left + slab + SLAB : n;  // nothing after the last
                a = quad(u, next + line, start + d, n, width);
                b = quad(u, next + line + 8, start + d, n, width);
                multiply(m + slab, shared.columns, tile);
            }
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int c = 0; c < 8; c++) du[r][c] += tile[r][c];
        }
        // The positive, without what is parallel to u: loss.py says why.                                (5.9), (5.10)
#pragma unroll
        for (int r = 0; r < 4; r++) {
            int i = top + own_row(r), partner = i < n / 2 ? i + n / 2 : i - n / 2;
            if (i >= n) continue;
            float side = positive[i] < 0 ? -1 : 1, pull = q[i] + q[partner];
#pragma unroll
            for (int c = 0; c < 8; c++) {
                int d = start + own_column(c);
                if (d >= D) continue;
                float own = u[(size_t)i * width + d];
                float whole = du[r][c] - pull * (u[(size_t)partner * width + d] - side * own);
                dz[(size_t)i * D + d] = whole;
                along[r] += own * whole;
            }
        }
    }
    // Through the norm: each thread finishes what it wrote itself.                                           (5.11)
    for (int r = 0; r < 4; r++) {
        for (int step = 8; step; step /= 2) along[r] += __shfl_xor_sync(ALL_LANES, along[r], step);
        int i = top + own_row(r);
        if (i >= n) continue;
        for (int start = 0; start < D; start += COLUMNS)
            for (int c = 0; c < 8; c++) {
                int d = start + own_column(c);
                if (d >= D) continue;
                float tangent = dz[(size_t)i * D + d] - u[(size_t)i * width + d] * along[r];
                dz[(size_t)i * D + d] = scale[i] == 0 ? 0 : tangent * factor / norm[i] / scale[i];
            }
    }
}
