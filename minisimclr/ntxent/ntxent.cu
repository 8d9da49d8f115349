// NT-Xent and its gradient in float32, in three launches, with nothing of size (2N)² in memory: common.cuh says how.
// It is compiled without fast-math, so exp, log, division and square root are accurate.
//
// A tile of cosines is ROWS × COLUMNS; each of the block's THREADS holds 4 × 8 of it in registers:
// rows 4·ty … 4·ty+3, columns 4·tx … 4·tx+3 and 64 + those, with tx = thread mod 16, ty = thread / 16.

#define ROWS 64      // anchors of a block
#define COLUMNS 128  // columns of a tile; also how many entries of du are gathered at a time
#define SLAB 16      // entries of the inner dimension that are in shared memory at a time
#define PAD 4        // unused floats after a row of shared memory: rows start at 16 bytes, and in different banks

struct Slabs { float rows[SLAB][ROWS + PAD]; float columns[SLAB][COLUMNS + PAD]; };  // both operands, inner index first

__device__ void round_row(float* u, int i, int n, int width) {}  // float32 needs no rounding

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

// Read four neighbouring entries of a unit row, or zeros outside of the array.
__device__ float4 quad(const float* u, int row, int d, int n, int width) {
    if (row < n && d < width) return *(const float4*)&u[(size_t)row * width + d];
    return make_float4(0, 0, 0, 0);
}

__device__ void store_as_column(float4 x, float* column, int stride) {  // four entries of a row, one below the other
    column[0] = x.x, column[stride] = x.y, column[2 * stride] = x.z, column[3 * stride] = x.w;
}

// The tile of cosines of the rows from `top` and the columns from `left`                                      (5.3)
// While one slab is multiplied, the next one is read from global memory.
__device__ void cosines(const float* u, int top, int left, int n, int width, Slabs& shared, float (&cosine)[4][8]) {
    int row = threadIdx.x / 4, k = threadIdx.x % 4 * 4;
    clear(cosine);
    float4 a = quad(u, top + row, k, n, width);
    float4 b = quad(u, left + row, k, n, width), c = quad(u, left + row + 64, k, n, width);
    for (int slab = 0; slab < width; slab += SLAB) {
        __syncthreads();  // the slab before has been read
        store_as_column(a, &shared.rows[k][row], ROWS + PAD);
        store_as_column(b, &shared.columns[k][row], COLUMNS + PAD);
        store_as_column(c, &shared.columns[k][row + 64], COLUMNS + PAD);
        __syncthreads();  // this slab has been written
        a = quad(u, top + row, slab + SLAB + k, n, width);
        b = quad(u, left + row, slab + SLAB + k, n, width);
        c = quad(u, left + row + 64, slab + SLAB + k, n, width);
        multiply(shared.rows, shared.columns, cosine);
    }
}

// ── Launch 2: the softmax's denominators and the loss ───────────────────────────────────────────────────────────────

// u, positive -> loss ℓ (n); highest, sum (gridDim.y, n) are the parts. A block takes `share` columns.
extern "C" __global__ void __launch_bounds__(THREADS)
row_sums(const float* u, const float* positive, float* highest, float* sum, float* loss, int* arrived, float invtau,
         int n, int width, int share) {
    __shared__ Slabs shared;
    int top = blockIdx.x * ROWS, first = blockIdx.y * share;
    float here[4], shift[4] = {0, 0, 0, 0}, total[4];  // the positive's margin is 0: start from it
    for (int r = 0; r < 4; r++) {
        here[r] = top + own_row(r) < n ? positive[top + own_row(r)] : 0;
        total[r] = here[r] * 0.0f;  // NaN if the positive is NaN, even if there is no negative
    }
    float tile[4][8];
    for (int left = first; left < first + share && left < n; left += COLUMNS) {
        cosines(u, top, left, n, width, shared, tile);
        bool mixed = is_mixed(top, ROWS, left, COLUMNS, n);
#pragma unroll
        for (int r = 0; r < 4; r++) {
            int i = top + own_row(r);
            float before = shift[r], part = 0;
#pragma unroll
            for (int c = 0; c < 8; c++) {
                tile[r][c] = (tile[r][c] - here[r]) * invtau;  //                                              (5.4)
                if (!mixed || is_negative(i, left + own_column(c), n)) shift[r] = fmaxf(shift[r], tile[r][c]);
            }
            if (shift[r] > before) total[r] *= expf(before - shift[r]);
#pragma unroll
            for (int c = 0; c < 8; c++)
                if (!mixed || is_negative(i, left + own_column(c), n)) part += expf(tile[r][c] - shift[r]);
            total[r] += part;
        }
    }
#pragma unroll
    for (int r = 0; r < 4; r++) write_row<16>(shift[r], total[r], top + own_row(r), n, highest, sum);
    if (is_last(arrived + 2 * blockIdx.x)) gather_losses(highest, sum, loss, top, ROWS, n);
}

// ── Launch 3: the gradient ──────────────────────────────────────────────────────────────────────────────────────────

__device__ float probability(float cosine, float positive, float loss, float invtau) {
    return expf((cosine - positive) * invtau - loss);  //                                                      (5.7)
}

// u, norm, scale, positive, loss -> value (1), dz (2N, D); parts (gridDim.y, 2N, D), or dz itself if there is one part.
// The grid has one block more than the rows need; it takes the mean of the losses.
extern "C" __global__ void __launch_bounds__(THREADS)
gradient(const float* u, const float* norm, const float* scale, const float* positive, const float* loss, float* value,
         float* parts, float* dz, int* arrived, float invtau, float factor, int n, int D, int width, int share) {
    __shared__ Slabs shared;
    __shared__ float m[COLUMNS][ROWS + PAD];  // P + Pᵀ of a tile, column by column
    int top = blockIdx.x * ROWS, first = blockIdx.y * share;
    if (top >= n) {
        if (blockIdx.y == 0) mean(loss, value, n);
        return;
    }
    for (int start = 0; start < D; start += COLUMNS) {  // COLUMNS entries of du at a time
        float du[4][8], tile[4][8];
        clear(du);
        for (int left = first; left < first + share && left < n; left += COLUMNS) {
            cosines(u, top, left, n, width, shared, tile);
            bool mixed = is_mixed(top, ROWS, left, COLUMNS, n);
            for (int c = 0; c < 8; c++) {
                int j = left + own_column(c);
                float pj = j < n ? positive[j] : 0, lj = j < n ? loss[j] : 0;
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    int i = top + own_row(r);
                    float both = 0;
                    if (!mixed || is_negative(i, j, n))
                        both = probability(tile[r][c], positive[i], loss[i], invtau)
                             + probability(tile[r][c], pj, lj, invtau);
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
                __syncthreads();  // this slab has been written, and before the first slab m
                int next = slab + SLAB < COLUMNS ? left + slab + SLAB : n;  // after the last slab, read zeros
                a = quad(u, next + line, start + d, n, width);
                b = quad(u, next + line + 8, start + d, n, width);
                multiply(m + slab, shared.columns, tile);
            }
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int c = 0; c < 8; c++) du[r][c] += tile[r][c];
        }
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int c = 0; c < 8; c++) {
                int i = top + own_row(r), d = start + own_column(c);
                if (i < n && d < D) parts[((size_t)blockIdx.y * n + i) * D + d] = du[r][c];
            }
    }
    if (is_last(arrived + 2 * blockIdx.x + 1))
        gather_gradient(parts, u, norm, scale, positive, loss, dz, factor, top, ROWS, n, D, width);
}
