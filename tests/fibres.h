// CUDA's threads on a CPU, to test a kernel without a GPU: a block's threads are fibres (ucontext) on one core.
// Each thread runs until its next __syncthreads or shuffle. Then the others run, in an order that is drawn anew each
// time from `seed`; some warps are left out until the next time. A thread that reads what another thread will write
// later, with no barrier between, reads garbage. Blocks run one at a time, also in a drawn order; __shared__ is
// static. The lanes of a warp wait for each other at each shuffle, the threads of a block at each barrier. A copy to
// shared memory arrives when it is waited for, and no earlier. A block must not tell others that it has arrived
// (atomicAdd) before each of its threads has published what it wrote (__threadfence).
// CuPy compiles with -ftz=true, so numbers too small for full precision become 0. On x86 they do so here too.
#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif
#include <functional>
#include <utility>
#include <vector>

#define ON_A_CPU
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct alignas(16) float4 { float x, y, z, w; };
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static int min(int a, int b) { return a < b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }
static float fast_exp(float x) { return exp2f(x * 1.44269504f); }  // as the GPU does, with the rounding of the product
#define __expf fast_exp  // the C library has the name too
static float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
static unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
static float __ldcg(const float* from) { return *from; }

struct Index { int x, y; };
static Index threadIdx, blockIdx, gridDim;

enum State { RUNS, AT_BARRIER, AT_SHUFFLE, DONE };
struct Copy { void* to; const void* from; int bytes; };
struct Fibre {
    ucontext_t context; jmp_buf here; bool entered; std::vector<char> stack; State state;
    char out[32];              // what the other lanes of the warp may see
    std::vector<Copy> copies;  // copies that have not arrived yet
    bool published;            // true if the thread has written nothing since its last __threadfence
};
static std::vector<Fibre> fibres;
static jmp_buf scheduler;
static std::function<void()> body;
static bool stuck;  // some threads of a block, or lanes of a warp, wait for others that have ended or wait elsewhere

static std::vector<int> running;            // number of threads of each warp that run …
static std::vector<int> at_shuffle;         // … and that wait for the other lanes
static int at_barrier;                      // number of threads of the block that wait at a barrier
static void pause(State state) {
    int me = threadIdx.x;
    fibres[me].state = state;
    running[me / 32]--;
    if (state == AT_SHUFFLE) at_shuffle[me / 32]++;
    if (state == AT_BARRIER) at_barrier++;
    if (!_setjmp(fibres[me].here)) _longjmp(scheduler, 1);  // swapcontext would call the system each time
}
static void resume(Fibre& fibre) {
    if (_setjmp(scheduler)) return;
    if (fibre.entered) _longjmp(fibre.here, 1);
    fibre.entered = true;
    setcontext(&fibre.context);
}
static int left_out = -1;  // the barrier that a test takes away, counted from the top of the file
static void barrier(int number) { if (number != left_out) pause(AT_BARRIER); }
#define __syncthreads() barrier(__COUNTER__)
extern "C" void leave_out(int number) { left_out = number; }
// A value of each lane of a warp, which all lanes may read as long as this object lives.
template <class T> struct Together {
    Together(const T& mine) {
        static_assert(sizeof(T) <= sizeof(Fibre::out), "too large to show");
        memcpy(fibres[threadIdx.x].out, &mine, sizeof(T));
        pause(AT_SHUFFLE);  // until all lanes have stored their value
    }
    ~Together() { pause(AT_SHUFFLE); }  // until all lanes have read the values
    const T& operator[](int lane) const { return *(const T*)fibres[threadIdx.x / 32 * 32 + lane].out; }
};
template <class T> static T __shfl_xor_sync(unsigned, T value, int mask) {
    return Together<T>(value)[threadIdx.x % 32 ^ mask];
}
static void copy_later(void* to, const void* from, int bytes) { fibres[threadIdx.x].copies.push_back({to, from, bytes}); }
static void copy_now() {
    for (Copy& copy : fibres[threadIdx.x].copies) {
        memcpy(copy.to, copy.from, copy.bytes);
        memset((char*)copy.to + copy.bytes, 0, 16 - copy.bytes);
    }
    fibres[threadIdx.x].copies.clear();
}
static void __threadfence() { fibres[threadIdx.x].published = true; }
static int atomicAdd(int* number, int more) {
    for (Fibre& fibre : fibres) if (!fibre.published) stuck = true;
    int before = *number;
    *number += more;
    return before;
}
static void enter() { body(); pause(DONE); }

struct FlushToZero {
#ifdef __SSE__
    unsigned before = _mm_getcsr();
    FlushToZero() { _mm_setcsr(before | 0x8040); }  // flush results to zero, and operands too
    ~FlushToZero() { _mm_setcsr(before); }
#endif
};

static unsigned drawn;  // a permuted congruential generator: short, and quick enough to be asked all the time
static unsigned random_below(unsigned limit) {
    drawn = drawn * 747796405u + 2891336453u;
    return (((drawn >> (drawn >> 28) + 4) ^ drawn) * 277803737u >> 8) % limit;
}

// Call f(0) … f(count − 1) in one of many orders; count is a power of two.
template <class F> static void in_some_order(int count, F f) {
    int step = 2 * random_below(count) + 1, first = random_below(count);
    for (int x = 0; x < count; x++) f((first + step * x) % count);
}

static void start(Fibre& fibre) {
    fibre.stack.resize(1 << 16), fibre.state = RUNS, fibre.entered = fibre.published = false, fibre.copies.clear();
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.data(), fibre.context.uc_stack.ss_size = fibre.stack.size();
    makecontext(&fibre.context, enter, 0);
}

static void wake(int warp) {
    for (int t = 32 * warp; t < 32 * warp + 32; t++) fibres[t].state = RUNS;
    running[warp] = 32, at_shuffle[warp] = 0;
}

static void run_block(int threads) {
    int warps = threads / 32;
    running.assign(warps, 32), at_shuffle.assign(warps, 0), at_barrier = 0;
    for (Fibre& fibre : fibres) start(fibre);
    for (bool moved = true; moved && !stuck;) {
        moved = false;
        in_some_order(warps, [&](int warp) {
            if (running[warp]) moved = true;                 // now, or
            if (!running[warp] || random_below(2)) return;  // the next time: some run ahead of others, until a barrier
            in_some_order(32, [&](int lane) {
                int t = 32 * warp + lane;
                if (fibres[t].state == RUNS) threadIdx.x = t, resume(fibres[t]);
            });
            if (at_shuffle[warp] == 32) wake(warp);
        });
        if (at_barrier < threads) continue;
        at_barrier = 0;
        for (int warp = 0; warp < warps; warp++) wake(warp);
        moved = true;
    }
    for (Fibre& fibre : fibres) if (fibre.state != DONE) stuck = true;
}

static bool launch(int columns, int rows, int threads, unsigned seed, std::function<void()> kernel) {
    FlushToZero like_the_gpu;
    body = kernel, fibres.resize(threads), stuck = false, gridDim = {columns, rows}, drawn = seed;
    std::vector<int> blocks;
    for (int block = 0; block < columns * rows; block++)
        blocks.insert(blocks.begin() + random_below(block + 1), block);
    for (int block : blocks) {
        blockIdx = {block % columns, block / columns};
        run_block(threads);
        if (stuck) break;
    }
    return !stuck;
}

// KERNEL(name) makes run_name for Python: like cuLaunchKernel it takes a pointer to each argument. It
// returns false if threads are stuck, or if a block arrived too early.
template <class... A, size_t... I>
static bool run(void (*kernel)(A...), int columns, int rows, int threads, unsigned seed, void** to,
                std::index_sequence<I...>) {
    return launch(columns, rows, threads, seed, [&] { kernel(*(A*)to[I]...); });
}
template <class... A>
static bool run(void (*kernel)(A...), int columns, int rows, int threads, unsigned seed, void** to) {
    return run(kernel, columns, rows, threads, seed, to, std::index_sequence_for<A...>());
}
#define KERNEL(name) extern "C" bool run_##name(int columns, int rows, int threads, unsigned seed, void** to) { \
    return run(name, columns, rows, threads, seed, to); }
