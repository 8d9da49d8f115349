// CUDA's threads on a CPU, to test a kernel without a GPU: a block's threads are fibres (ucontext) on one core.
// Each runs until its next __syncthreads or shuffle; then the others do, in an order drawn anew each time from
// `seed`. Whoever reads what another thread has yet to write, with no barrier between, reads garbage. One block at a
// time; __shared__ is static. A warp's lanes meet at each shuffle, a block's threads at each barrier.
#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <ucontext.h>
#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct alignas(16) float4 { float x, y, z, w; };
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct Index { int x; };
static Index threadIdx, blockIdx;

enum State { RUNS, AT_BARRIER, AT_SHUFFLE, DONE };
struct Fibre { ucontext_t context; jmp_buf here; bool entered; std::vector<char> stack; State state; double out; };
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
template <class T> static T __shfl_xor_sync(unsigned, T value, int mask) {
    int me = threadIdx.x;
    fibres[me].out = value;  // a double holds every float
    pause(AT_SHUFFLE);       // all lanes have put theirs
    T other = (T)fibres[me ^ mask].out;
    pause(AT_SHUFFLE);       // all lanes have taken theirs
    return other;
}
static void enter() { body(); pause(DONE); }

static bool launch(int blocks, int threads, unsigned seed, std::function<void()> kernel) {
    std::mt19937 random(seed);
    std::vector<int> order(threads);
    std::iota(order.begin(), order.end(), 0);
    body = kernel, fibres.resize(threads), stuck = false;
    for (blockIdx.x = 0; blockIdx.x < blocks && !stuck; blockIdx.x++) {
        for (Fibre& fibre : fibres) {
            fibre.stack.resize(1 << 16), fibre.state = RUNS, fibre.entered = false;
            getcontext(&fibre.context);
            fibre.context.uc_stack.ss_sp = fibre.stack.data(), fibre.context.uc_stack.ss_size = fibre.stack.size();
            makecontext(&fibre.context, enter, 0);
        }
        for (;;) {
            std::shuffle(order.begin(), order.end(), random);
            for (int t : order)
                if (fibres[t].state == RUNS) threadIdx.x = t, resume(fibres[t]);
            auto all = [&](int from, int to, State state) {
                return std::all_of(&fibres[from], &fibres[0] + to, [&](Fibre& f) { return f.state == state; });
            };
            if (all(0, threads, DONE)) break;
            bool moved = false;
            auto wake = [&](int from, int to) { for (int t = from; t < to; t++) fibres[t].state = RUNS; moved = true; };
            if (all(0, threads, AT_BARRIER)) wake(0, threads);
            for (int warp = 0; warp < threads; warp += 32) if (all(warp, warp + 32, AT_SHUFFLE)) wake(warp, warp + 32);
            if (!moved) { stuck = true; break; }
        }
    }
    return !stuck;
}

// KERNEL(name) makes run_name for Python: like cuLaunchKernel it takes a pointer to each argument. False: stuck.
template <class... A, size_t... I>
static bool run(void (*kernel)(A...), int blocks, int threads, unsigned seed, void** to, std::index_sequence<I...>) {
    return launch(blocks, threads, seed, [&] { kernel(*(A*)to[I]...); });
}
template <class... A> static bool run(void (*kernel)(A...), int blocks, int threads, unsigned seed, void** to) {
    return run(kernel, blocks, threads, seed, to, std::index_sequence_for<A...>());
}
#define KERNEL(name) extern "C" bool run_##name(int blocks, int threads, unsigned seed, void** to) { \
    return run(name, blocks, threads, seed, to); }
