// CUDA's threads on a CPU, to test a kernel without a GPU: a block's threads are fibres (ucontext) on one core.
// Each runs until its next __syncthreads or shuffle; then the others do, in an order drawn anew each time from
// `seed`. Whoever reads what another thread has yet to write, with no barrier between, reads garbage. One block at a
// time, in such an order too; __shared__ is static. A warp's lanes meet at each shuffle, a block's threads at each
// barrier. A copy on its way to shared memory arrives when it is waited for, and no earlier. A block must not tell
// others that it has arrived (atomicAdd) before each of its threads has published what it wrote (__threadfence).
// CuPy compiles with -ftz=true: numbers too small for full precision are 0. On x86 they are here too.
#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif
#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#define ON_A_CPU
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct alignas(16) float4 { float x, y, z, w; };
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using std::max;
using std::min;
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
    std::vector<Copy> copies;  // on their way
    bool published;            // nothing written since the last __threadfence that others count on
};
static std::vector<Fibre> fibres;
static jmp_buf scheduler;
static std::function<void()> body;
static bool stuck;  // some threads of a block, or lanes of a warp, wait for others that have ended or wait elsewhere

static void pause(State state) {
    int me = threadIdx.x;
    fibres[me].state = state;
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
// What each lane of a warp brings, for all of them to see as long as this lives.
template <class T> struct Together {
    Together(const T& mine) {
        static_assert(sizeof(T) <= sizeof(Fibre::out), "too large to show");
        memcpy(fibres[threadIdx.x].out, &mine, sizeof(T));
        pause(AT_SHUFFLE);  // all lanes have put theirs
    }
    ~Together() { pause(AT_SHUFFLE); }  // all lanes have taken theirs
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
    FlushToZero() { _mm_setcsr(before | 0x8040); }  // results, and what is read
    ~FlushToZero() { _mm_setcsr(before); }
#endif
};

static bool launch(int columns, int rows, int threads, unsigned seed, std::function<void()> kernel) {
    FlushToZero like_the_gpu;
    std::mt19937 random(seed);
    std::vector<int> order(threads), blocks(columns * rows);
    std::iota(order.begin(), order.end(), 0), std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), random);
    body = kernel, fibres.resize(threads), stuck = false, gridDim = {columns, rows};
    for (int block : blocks) {
        blockIdx = {block % columns, block / columns};
        for (Fibre& fibre : fibres) {
            fibre.stack.resize(1 << 16), fibre.state = RUNS, fibre.entered = fibre.published = false;
            fibre.copies.clear();
            getcontext(&fibre.context);
            fibre.context.uc_stack.ss_sp = fibre.stack.data(), fibre.context.uc_stack.ss_size = fibre.stack.size();
            makecontext(&fibre.context, enter, 0);
        }
        for (;;) {
            std::shuffle(order.begin(), order.end(), random);
            unsigned awake = random();  // a bit for each warp: some run ahead of others, until a barrier
            bool moved = false;
            for (int t : order) {
                if (fibres[t].state != RUNS) continue;
                moved = true;  // now or next time
                if (awake >> t / 32 & 1) threadIdx.x = t, resume(fibres[t]);
            }
            auto all = [&](int from, int to, State state) {
                return std::all_of(&fibres[from], &fibres[0] + to, [&](Fibre& f) { return f.state == state; });
            };
            if (all(0, threads, DONE)) break;
            auto wake = [&](int from, int to) { for (int t = from; t < to; t++) fibres[t].state = RUNS; moved = true; };
            if (all(0, threads, AT_BARRIER)) wake(0, threads);
            for (int warp = 0; warp < threads; warp += 32) if (all(warp, warp + 32, AT_SHUFFLE)) wake(warp, warp + 32);
            if (!moved) stuck = true;
            if (stuck) return false;
        }
    }
    return true;
}

// KERNEL(name) makes run_name for Python: like cuLaunchKernel it takes a pointer to each argument. False: stuck, or an
// arrival before its time.
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
