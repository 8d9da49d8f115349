// The common part of NT-Xent's kernels: ntxent.cu multiplies in float32, tensor.cu on tensor cores. cuda.py puts this
// text in front of either file, compiles both together, and launches
//
//     normalize   each warp takes one image, and computes u, |z| and the cosine of the positive
//     row_sums    each block takes ROWS anchors and a share of the columns, and computes the loss ℓ of each anchor
//     gradient    each block takes the same share once more, and computes du, and from du, through the norm, dz
//
// The tags (5.2) ... are the equations of docs/05_nt_xent.md; plain.py and exact.py compute them in Python.
//
// If there are few anchors, several blocks share the columns of the same anchors, so that all multiprocessors have
// work. Each block writes down its part. The last block to finish adds the parts up, in the order of the columns,
// whichever block that is. So sums have a fixed order, and the result is the same bit for bit every time. The price is
// that symmetry is not used: 6 n²D operations instead of 4 n²D, n = 2N.
//
// Of each anchor, two numbers are stored: the cosine of its positive, and ℓ, its own loss (5.6). The rest follows:
//     P = e^(margin − ℓ)        the softmax of a negative (5.7), as ℓ is the logarithm of the denominator
//     q = 1 − e^(−ℓ)            1 − P of the positive (5.8)
// tests/fibres.h runs these files on a CPU.

#define THREADS 256
#define ALL_LANES 0xffffffffu

__device__ float warp_max(float x) {
    for (int step = 16; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

__device__ double warp_sum(double x) {
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

__device__ int partner_of(int i, int n) { return i < n / 2 ? i + n / 2 : i - n / 2; }

// True if column j is a negative of anchor i: neither the anchor itself nor its positive, and both exist.
__device__ bool is_negative(int i, int j, int n) { return i < n && j < n && j != i && j != partner_of(i, n); }

// True if a tile, `rows` anchors from `top` and `columns` columns from `left`, may hold anything but negatives.
__device__ bool is_mixed(int top, int rows, int left, int columns, int n) {
    for (int from = top - n / 2; from <= top + n / 2; from += n / 2)  // the partners on either side, and the anchors
        if (left < from + rows && from < left + columns) return true;
    return left + columns > n || top + rows > n;
}

// ── Launch 1: unit rows ─────────────────────────────────────────────────────────────────────────────────────────────

// z (D) -> u (width), with zeros beyond D; |z| = norm · scale as in exact.unit_rows                           (5.2)
__device__ void unit_row(const float* z, float* u, int D, int width, float* norm, float* scale) {
    int lane = threadIdx.x % 32;
    float largest = 0, spoilt = 0;  // fmaxf ignores a NaN, so NaNs are summed apart: ∞·0 and NaN·0 are NaN
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

// Round row i of u to what the products can take: nothing in ntxent.cu, bfloat16 in tensor.cu. A lane takes
// d = lane + 32·k.
__device__ void round_row(float* u, int i, int n, int width);

// za, zb (N, D) -> u (2N, width); norm, scale, positive (2N). A warp takes one image. `arrived` becomes 0.
extern "C" __global__ void __launch_bounds__(THREADS)
normalize(const float* za, const float* zb, float* u, float* norm, float* scale, float* positive, int* arrived, int N,
          int D, int width) {
    if (threadIdx.x < 2) arrived[2 * blockIdx.x + threadIdx.x] = 0;
    int image = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (image >= N) return;  // the whole warp returns, so that no lane is missing at a shuffle
    int partner = image + N;
    float *ua = u + (size_t)image * width, *ub = u + (size_t)partner * width;
    unit_row(za + (size_t)image * D, ua, D, width, norm + image, scale + image);
    unit_row(zb + (size_t)image * D, ub, D, width, norm + partner, scale + partner);
    round_row(u, image, 2 * N, width);
    round_row(u, partner, 2 * N, width);
    double cosine = 0;  // each lane reads what it wrote itself
    for (int d = lane; d < width; d += 32) cosine += (double)ua[d] * ub[d];
    cosine = warp_sum(cosine);
    if (lane == 0) positive[image] = positive[partner] = (float)cosine;
}

// ── The end of launches 2 and 3: the parts of several blocks ────────────────────────────────────────────────────────

// True if this block is the last one to write its part, of all blocks that share these anchors.
__device__ bool is_last(int* arrived) {
    __shared__ bool last;
    __threadfence();  // all blocks can see what this thread wrote …
    __syncthreads();  // … and what the other threads of its block wrote
    if (threadIdx.x == 0) last = atomicAdd(arrived, 1) == gridDim.y - 1;
    __syncthreads();
    __threadfence();
    return last;
}

// LANES neighbouring lanes hold the margins of anchor i. Each has the largest of its own margins, and its sum of
// e^(margin − largest). One lane writes down both numbers for all of them, as this block's part.
template <int LANES>
__device__ void write_row(float largest, float total, int i, int n, float* highest, float* sum) {
    float all = largest;
    for (int step = LANES / 2; step; step /= 2) all = fmaxf(all, __shfl_xor_sync(ALL_LANES, all, step));
    total *= expf(largest - all);
    for (int step = LANES / 2; step; step /= 2) total += __shfl_xor_sync(ALL_LANES, total, step);
    if (threadIdx.x % LANES == 0 && i < n) {
        highest[blockIdx.y * n + i] = all;
        sum[blockIdx.y * n + i] = total;
    }
}

// Each part's largest margin and sum of e^(margin − largest), of the anchors from `top` -> their ℓ            (5.6)
// __ldcg reads from the L2 cache, which all blocks share.
__device__ void gather_losses(const float* highest, const float* sum, float* loss, int top, int rows, int n) {
    for (int i = top + threadIdx.x; i < top + rows && i < n; i += THREADS) {
        float shift = 0;  // the positive's margin
        for (int part = 0; part < gridDim.y; part++) shift = fmaxf(shift, __ldcg(&highest[part * n + i]));
        float negatives = 0;
        for (int part = 0; part < gridDim.y; part++)
            negatives += __ldcg(&sum[part * n + i]) * expf(__ldcg(&highest[part * n + i]) - shift);
        loss[i] = shift + log1pf(negatives + expm1f(-shift));
    }
}

// The parts of du (…, n, D) of the anchors from `top` -> dz (n, D). A warp takes one anchor. factor = 1/(2Nτ)
__device__ void gather_gradient(const float* parts, const float* u, const float* norm, const float* scale,
                                const float* positive, const float* loss, float* dz, float factor, int top, int rows,
                                int n, int D, int width) {
    int lane = threadIdx.x % 32;
    for (int i = top + threadIdx.x / 32; i < top + rows && i < n; i += THREADS / 32) {
        int partner = partner_of(i, n);
        const float *own = u + (size_t)i * width, *other = u + (size_t)partner * width;
        float* out = dz + (size_t)i * D;
        float pull = -expm1f(-loss[i]) - expm1f(-loss[partner]);  // q of both                                 (5.8)
        float side = positive[i] < 0 ? -1 : 1;
        double along = 0, squares = 0;  // ⟨u, du⟩ and ⟨u, u⟩, which is 1 but for rounding
        for (int d = lane; d < D; d += 32) {
            float du = 0;
            for (int part = 0; part < gridDim.y; part++) du += __ldcg(&parts[((size_t)part * n + i) * D + d]);
            // The positive, without its part parallel to u: tiled.py says why.                         (5.9), (5.10)
            du -= pull * (other[d] - side * own[d]);
            out[d] = du;
            along += (double)own[d] * du;
            squares += (double)own[d] * own[d];
        }
        along = warp_sum(along) / fmax(warp_sum(squares), 0.5);  // a zero row has neither
        for (int d = lane; d < D; d += 32) {
            float tangent = out[d] - own[d] * (float)along;  //                                                (5.11)
            out[d] = scale[i] == 0 ? 0 : tangent * factor / norm[i] / scale[i];
        }
    }
}

// One block takes the mean of the losses, in a fixed order.                                                                 (5.1)
__device__ void mean(const float* loss, float* value, int n) {
    __shared__ double of_warp[THREADS / 32];
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) sum += loss[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    sum = 0;
    for (int warp = 0; warp < THREADS / 32; warp++) sum += of_warp[warp];
    *value = (float)(sum / n);
}
