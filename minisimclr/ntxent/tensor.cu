// NT-Xent and its gradient on tensor cores, in the three launches of common.cuh; as in ntxent.cu, nothing of size (2N)².
//
// Tensor cores multiply bfloat16 numbers, of 8 significant bits, and add in float32. TERMS is the number of such
// products in the place of one product of float32 numbers:
//     TERMS 1    x y ≈ x₁ y₁                         x₁ is x rounded to bfloat16
//     TERMS 3    x y ≈ x₁ y₁ + x₁ y₂ + x₂ y₁         x₂ is x − x₁ rounded: 16 bits of x, nearly float32
// The unit rows are rounded once, by launch 1; from there on they are the u of all equations, in cosines, positives
// and gradient alike. So equal rows stay equal, and the result is the exact loss of slightly moved rows.
//
// A block owns ROWS anchors, each of its warps 16 of them, whose entries stay in registers. It goes through tiles of
// COLUMNS columns in shared memory: while one tile is used, the next is copied. As in fused attention, a tile of cosines
// never leaves the registers: there it becomes P + Pᵀ, which is the left operand of the next product.
// D may be at most DEPTH.

#define ROWS 128
#define DEPTH 128
#define PARTS (TERMS == 1 ? 1 : 2)    // x₁, or x₁ and x₂
#define COLUMNS (TERMS == 1 ? 64 : 32)
#define PAD 8                         // unused numbers after a row of a tile: rows start in different banks

typedef unsigned short bfloat16;

struct alignas(16) Tile { bfloat16 u[PARTS][COLUMNS][DEPTH + PAD]; float positive[COLUMNS], loss[COLUMNS]; };

// ── Instructions of tensor cores; for a CPU, code that computes the same ────────────────────────────────────────────

__device__ unsigned pack(float low, float high) {  // round two numbers to the nearest bfloat16
    unsigned both;
#ifndef ON_A_CPU
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#else
    unsigned x = __float_as_uint(low), y = __float_as_uint(high);  // add half a unit, or a bit less: ties to even
    both = (x + 0x7fff + (x >> 16 & 1)) >> 16 | ((y + 0x7fff + (y >> 16 & 1)) & 0xffff0000);
#endif
    return both;
}

__device__ float low_half(unsigned both) { return __uint_as_float(both << 16); }
__device__ float high_half(unsigned both) { return __uint_as_float(both & 0xffff0000); }

// c (16, 8) += a (16, 16) · b (16, 8), spread over a warp. With g = lane / 4, t = lane mod 4, a lane holds of a the
// entries (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), each with its right neighbour; of b the entries (2t, g)
// and (2t + 8, g), each with the one below; of c the entries (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
__device__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#ifndef ON_A_CPU
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    struct Operands { unsigned a[4], b[2]; } mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    Together<Operands> warp(mine);
    for (int x = 0; x < 4; x++) {
        int g = threadIdx.x % 32 / 4 + x / 2 * 8, column = threadIdx.x % 4 * 2 + x % 2;
        double sum = c[x];
        for (int k = 0; k < 16; k += 2) {
            unsigned left = warp[g % 8 * 4 + k % 8 / 2].a[k / 8 * 2 + g / 8];
            unsigned right = warp[column * 4 + k % 8 / 2].b[k / 8];
            sum += (double)low_half(left) * low_half(right) + (double)high_half(left) * high_half(right);
        }
        c[x] = (float)sum;
        if (fabs(c[x]) > fabs(sum)) c[x] = nextafterf(c[x], 0);  // tensor cores truncate
    }
#endif
}

// Load four blocks of 8 × 8 numbers from shared memory. Lane 8m + r gives the address of row r of block m. Each lane
// gets the entries (g, 2t) and (g, 2t + 1) of each block, or of the transposed block.
template <bool TRANSPOSED> __device__ void load(unsigned (&x)[4], const bfloat16* row) {
#ifndef ON_A_CPU
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
#else
    Together<const bfloat16*> warp(row);
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int m = 0; m < 4; m++)
        x[m] = TRANSPOSED ? warp[8 * m + 2 * t][g] | (unsigned)warp[8 * m + 2 * t + 1][g] << 16
                          : warp[8 * m + g][2 * t] | (unsigned)warp[8 * m + g][2 * t + 1] << 16;
#endif
}

// Begin to copy `bytes` bytes to shared memory, and zeros up to 16 bytes; wait_for_copies waits until they are there.
__device__ void copy_16(void* to, const void* from, int bytes) {
#ifndef ON_A_CPU
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(__cvta_generic_to_global(from)), "r"(bytes) : "memory");
#else
    copy_later(to, from, bytes);
#endif
}
__device__ void wait_for_copies() {
#ifndef ON_A_CPU
    asm volatile("cp.async.wait_all;" ::: "memory");
#else
    copy_now();
#endif
}

// ── Unit rows in bfloat16 ───────────────────────────────────────────────────────────────────────────────────────────

// Behind the rows of u (n, width) stand their parts in bfloat16, (PARTS, n, width).
__device__ bfloat16* part_of(float* u, int part, int i, int n, int width) {
    return (bfloat16*)(u + (size_t)n * width) + ((size_t)part * n + i) * width;
}

__device__ void round_row(float* u, int i, int n, int width) {
    float* row = u + (size_t)i * width;
    for (int d = threadIdx.x % 32; d < width; d += 32) {
        float rounded = 0;
        for (int part = 0; part < PARTS; part++) {
            unsigned next = pack(row[d] - rounded, 0);
            part_of(u, part, i, n, width)[d] = (bfloat16)next;
            rounded += low_half(next);
        }
        row[d] = rounded;
    }
}

// ── Tiles ───────────────────────────────────────────────────────────────────────────────────────────────────────────

__device__ int own_row(int r) { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * r; }           // r in 0, 1
__device__ int own_column(int tile, int c) { return 8 * tile + threadIdx.x % 4 * 2 + c; }                // c in 0, 1

// The anchors of this warp as left operands of products, for 16 entries of d at a time.
struct Anchors { unsigned u[PARTS][DEPTH / 16][4]; };

__device__ void take(Anchors& anchors, float* u, int top, int n, int width) {
#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
        for (int k = 0; k < DEPTH / 16; k++)
#pragma unroll
            for (int x = 0; x < 4; x++) {
                int i = top + own_row(x % 2), d = 16 * k + x / 2 * 8 + threadIdx.x % 4 * 2;
                bool exists = i < n && d < width;
                anchors.u[part][k][x] = exists ? *(unsigned*)&part_of(u, part, i, n, width)[d] : 0;
            }
}

// Begin to copy the columns from `left` to a tile, with their positives and losses. `loss` may be null.
__device__ void fetch(Tile& tile, float* u, const float* positive, const float* loss, int left, int n, int width) {
    for (int x = threadIdx.x; x < PARTS * COLUMNS * (DEPTH / 8); x += THREADS) {
        int d = x % (DEPTH / 8) * 8, column = x / (DEPTH / 8) % COLUMNS, part = x / (DEPTH / 8) / COLUMNS;
        bool exists = left + column < n && d < width;
        copy_16(&tile.u[part][column][d], exists ? part_of(u, part, left + column, n, width) + d : (bfloat16*)u,
                exists ? 16 : 0);
    }
    int j = 4 * threadIdx.x, bytes = min(16, 4 * (n - left - j));
    if (!loss || j >= COLUMNS) return;
    copy_16(&tile.positive[j], positive + (bytes > 0 ? left + j : 0), max(bytes, 0));
    copy_16(&tile.loss[j], loss + (bytes > 0 ? left + j : 0), max(bytes, 0));
}

// Compute cosine[s] (16, 8) of this warp's anchors and the columns 8s … 8s + 7 of the tile.                    (5.3)
__device__ void cosines(const Anchors& anchors, const Tile& tile, int width, float (&cosine)[COLUMNS / 8][4]) {
    int lane = threadIdx.x % 32, row = lane / 16 * 8 + lane % 8, side = lane / 8 % 2 * 8;
#pragma unroll
    for (int s = 0; s < COLUMNS / 8; s++)
#pragma unroll
        for (int x = 0; x < 4; x++) cosine[s][x] = 0;
#pragma unroll
    for (int k = 0; k < DEPTH / 16; k++) {
        if (16 * k >= width) break;
#pragma unroll
        for (int s = 0; s < COLUMNS / 8; s += 2) {
            unsigned x[PARTS][4];
#pragma unroll
            for (int part = 0; part < PARTS; part++) load<false>(x[part], &tile.u[part][8 * s + row][16 * k + side]);
#pragma unroll
            for (int h = 0; h < 2; h++) {
#if TERMS == 3  // the small terms first
                multiply(cosine[s + h], anchors.u[0][k], x[1][2 * h], x[1][2 * h + 1]);
                multiply(cosine[s + h], anchors.u[1][k], x[0][2 * h], x[0][2 * h + 1]);
#endif
                multiply(cosine[s + h], anchors.u[0][k], x[0][2 * h], x[0][2 * h + 1]);
            }
        }
    }
}

// ── Launch 2: the softmax's denominators and the loss ───────────────────────────────────────────────────────────────

// u, positive -> loss ℓ (n); highest, sum (gridDim.y, n) are the parts. A block takes `share` columns.
extern "C" __global__ void __launch_bounds__(THREADS)
row_sums(float* u, const float* positive, float* highest, float* sum, float* loss, int* arrived, float invtau, int n,
         int width, int share) {
    __shared__ Tile tiles[2];
    int top = blockIdx.x * ROWS, left = blockIdx.y * share, end = min(left + share, n);
    fetch(tiles[0], u, positive, nullptr, left, n, width);
    Anchors anchors;
    take(anchors, u, top, n, width);
    float here[2], shift[2] = {0, 0}, total[2];  // the positive's margin is 0: start from it
    for (int r = 0; r < 2; r++) {
        here[r] = top + own_row(r) < n ? positive[top + own_row(r)] : 0;
        total[r] = here[r] * 0.0f;  // NaN if the positive is NaN, even if there is no negative
    }
    for (int now = 0; left < end; left += COLUMNS, now = 1 - now) {
        wait_for_copies();
        __syncthreads();  // this tile is whole, and the one before has been read
        if (left + COLUMNS < end) fetch(tiles[1 - now], u, positive, nullptr, left + COLUMNS, n, width);
        float margin[COLUMNS / 8][4];
        cosines(anchors, tiles[now], width, margin);
        bool mixed = is_mixed(top, ROWS, left, COLUMNS, n);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float before = shift[r], part = 0;
#pragma unroll
            for (int x = 0; x < COLUMNS / 4; x++) {
                float& m = margin[x / 2][2 * r + x % 2];
                m = (m - here[r]) * invtau;  //                                                                (5.4)
                if (mixed && !is_negative(top + own_row(r), left + own_column(x / 2, x % 2), n))
                    m = __uint_as_float(0xff800000);  // −∞
                shift[r] = fmaxf(shift[r], m);
            }
            total[r] *= __expf(before - shift[r]);
#pragma unroll
            for (int x = 0; x < COLUMNS / 4; x++) part += __expf(margin[x / 2][2 * r + x % 2] - shift[r]);
            total[r] += part;
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) write_row<4>(shift[r], total[r], top + own_row(r), n, highest, sum);
    if (is_last(arrived + 2 * blockIdx.x)) gather_losses(highest, sum, loss, top, ROWS, n);
}

// ── Launch 3: the gradient ──────────────────────────────────────────────────────────────────────────────────────────

// P + Pᵀ of a tile of cosines as left operands of products, for 16 columns at a time.                   (5.7), (5.9)
struct Weights { unsigned m[PARTS][COLUMNS / 16][4]; };

__device__ void weigh(Weights& weights, const float (&cosine)[COLUMNS / 8][4], const Tile& tile, const float (&here)[2],
                      const float (&loss)[2], float invtau, int top, int left, int n) {
    bool mixed = is_mixed(top, ROWS, left, COLUMNS, n);
#pragma unroll
    for (int s = 0; s < COLUMNS / 8; s++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float m[2];
#pragma unroll
            for (int c = 0; c < 2; c++) {
                int j = own_column(s, c);
                float x = cosine[s][2 * r + c];
                m[c] = __expf((x - here[r]) * invtau - loss[r]) + __expf((x - tile.positive[j]) * invtau - tile.loss[j]);
                if (mixed && !is_negative(top + own_row(r), left + j, n)) m[c] = 0;
            }
            // A result is laid out as a left operand: rows g, g + 8 of columns 2t, 2t + 1, and of those 8 further on.
            unsigned first = weights.m[0][s / 2][s % 2 * 2 + r] = pack(m[0], m[1]);
            if (TERMS == 3) weights.m[PARTS - 1][s / 2][s % 2 * 2 + r] = pack(m[0] - low_half(first), m[1] - high_half(first));
        }
}

// u, norm, scale, positive, loss -> value (1), dz (2N, D); parts (gridDim.y, 2N, D), or dz itself if there is one part.
// The grid has one block more than the rows need; it takes the mean of the losses.
extern "C" __global__ void __launch_bounds__(THREADS)
gradient(float* u, const float* norm, const float* scale, const float* positive, const float* loss, float* value,
         float* parts, float* dz, int* arrived, float invtau, float factor, int n, int D, int width, int share) {
    __shared__ Tile tiles[2];
    int top = blockIdx.x * ROWS, left = blockIdx.y * share, end = min(left + share, n);
    if (top >= n) {
        if (blockIdx.y == 0) mean(loss, value, n);
        return;
    }
    fetch(tiles[0], u, positive, loss, left, n, width);
    Anchors anchors;
    take(anchors, u, top, n, width);
    float here[2], own_loss[2], du[DEPTH / 8][4] = {};  // du[s] (16, 8): entries 8s … 8s + 7 of this warp's anchors
    for (int r = 0; r < 2; r++) {
        here[r] = top + own_row(r) < n ? positive[top + own_row(r)] : 0;
        own_loss[r] = top + own_row(r) < n ? loss[top + own_row(r)] : 0;
    }
    int lane = threadIdx.x % 32, row = lane / 8 % 2 * 8 + lane % 8, side = lane / 16 * 8;
    for (int now = 0; left < end; left += COLUMNS, now = 1 - now) {
        wait_for_copies();
        __syncthreads();  // this tile is whole, and the one before has been read
        if (left + COLUMNS < end) fetch(tiles[1 - now], u, positive, loss, left + COLUMNS, n, width);
        float cosine[COLUMNS / 8][4];
        Weights weights;
        cosines(anchors, tiles[now], width, cosine);
        weigh(weights, cosine, tiles[now], here, own_loss, invtau, top, left, n);
        // This tile's part of (P + Pᵀ) u is summed by itself: long sums of small terms would lose digits.
#pragma unroll
        for (int s = 0; s < DEPTH / 8; s += 2) {
            if (8 * s >= width) break;
            float part[2][4] = {};
#pragma unroll
            for (int k = 0; k < COLUMNS / 16; k++) {
                unsigned x[PARTS][4];
#pragma unroll
                for (int p = 0; p < PARTS; p++) load<true>(x[p], &tiles[now].u[p][16 * k + row][8 * s + side]);
#pragma unroll
                for (int h = 0; h < 2; h++) {
#if TERMS == 3
                    multiply(part[h], weights.m[0][k], x[1][2 * h], x[1][2 * h + 1]);
                    multiply(part[h], weights.m[1][k], x[0][2 * h], x[0][2 * h + 1]);
#endif
                    multiply(part[h], weights.m[0][k], x[0][2 * h], x[0][2 * h + 1]);
                }
            }
#pragma unroll
            for (int x = 0; x < 8; x++) du[s + x / 4][x % 4] += part[x / 4][x % 4];
        }
    }
#pragma unroll
    for (int x = 0; x < DEPTH / 2; x++) {
        int i = top + own_row(x / 2 % 2), d = own_column(x / 4, x % 2);
        if (i < n && d < D) parts[((size_t)blockIdx.y * n + i) * D + d] = du[x / 4][x % 4];
    }
    if (is_last(arrived + 2 * blockIdx.x + 1))
        gather_gradient(parts, u, norm, scale, positive, loss, dz, factor, top, ROWS, n, D, width);
}
