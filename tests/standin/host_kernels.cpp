// The kernels on the CPU, for tests: kernels.cu, compiled unchanged by the host's compiler, behind a launch with the
// arguments of cuLaunchKernel. Blocks run one after another and the threads of a block as fibers, both in an order that
// changes from launch to launch, so that a dependence on an order shows; shared memory is garbage when a block starts; an
// unaligned vector, a barrier that some threads miss and a launch that no device would accept are caught. Addresses are
// checked for alignment alone: use buffers with guards.
//
//   c++ -O1 -g -std=c++17 -fPIC -c -o host_kernels.o tests/standin/host_kernels.cpp -I src/device/cuda
//
// Linux with GNU or LLVM tools. Uses the C library alone, so that a Rust test can link it without a C++ one.

// A checked longjmp takes a switch of stacks for an error.
#undef _FORTIFY_SOURCE

#include <pthread.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

namespace {

[[noreturn]] void give_up(const char* what) {
    fprintf(stderr, "host kernels: %s\n", what);
    abort();
}

// ---- The language of kernels.cu ----

struct Dim3 {
    unsigned x, y, z;
};
// Of the fiber that runs. Plain globals: launches take turns.
Dim3 threadIdx, blockIdx, blockDim, gridDim;

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

void check_aligned(const void* at, size_t size) {
    if (reinterpret_cast<uintptr_t>(at) % size != 0) {
        fprintf(stderr, "host kernels: %zu bytes at %p are not aligned\n", size, at);
        abort();
    }
}

template <class T>
T __ldg(const T* from) {
    check_aligned(from, sizeof(T));
    T value;
    memcpy(&value, from, sizeof(T));
    return value;
}

template <class T, class V>
void __stcs(T* to, V value) {
    check_aligned(to, sizeof(T));
    const T stored = value;
    memcpy(to, &stored, sizeof(T));
}

inline unsigned __byte_perm(unsigned a, unsigned b, unsigned order) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    unsigned result = 0;
    for (unsigned at = 0; at < 4; ++at) {
        result |= static_cast<unsigned>(bytes >> 8 * (order >> 4 * at & 7) & 255) << 8 * at;
    }
    return result;
}

void barrier();

// A wait is slept when its launch has left the processor, so that the other devices can go on. One thread asks for it.
unsigned long long asked_to_wait;

void sleep_for(unsigned long long nanoseconds) {
    timespec left = {static_cast<time_t>(nanoseconds / 1000000000), static_cast<long>(nanoseconds % 1000000000)};
    while (nanosleep(&left, &left) != 0) {
    }
}

}  // namespace

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __restrict__ __restrict
#define __syncthreads() barrier()
// All shared arrays in one section, which a block finds filled with garbage.
#define __shared__ static __attribute__((section("standin_shared")))
#define FEEDSTOCK_WAIT(nanoseconds) (asked_to_wait = (nanoseconds))

#include "kernels.cu"

extern "C" char __start_standin_shared[] __attribute__((visibility("hidden")));
extern "C" char __stop_standin_shared[] __attribute__((visibility("hidden")));

namespace {

// ---- Threads of a block ----

struct Fiber {
    enum State { PARKED, READY, WAITING, DONE } state;
    bool started;
    jmp_buf at;
    ucontext_t first;
};

constexpr unsigned MOST_THREADS = BLOCK;
constexpr size_t STACK = 64 * 1024;

// Fibers are kept from block to block: between blocks each waits at the end of its loop.
Fiber fibers[MOST_THREADS];
alignas(64) char stacks[MOST_THREADS][STACK];
Fiber* running;
jmp_buf scheduler;

using Kernel = void (*)(void** params);
Kernel kernel;
void** kernel_params;

void leave(Fiber::State state) {
    Fiber* self = running;
    self->state = state;
    if (_setjmp(self->at) == 0) {
        _longjmp(scheduler, 1);
    }
}

void barrier() { leave(Fiber::WAITING); }

void live() {
    for (;;) {
        kernel(kernel_params);
        leave(Fiber::DONE);
    }
}

void resume(unsigned thread) {
    Fiber* fiber = &fibers[thread];
    running = fiber;
    threadIdx = {thread, 0, 0};
    if (_setjmp(scheduler) != 0) {
        return;
    }
    if (fiber->started) {
        _longjmp(fiber->at, 1);
    }
    fiber->started = true;
    getcontext(&fiber->first);
    fiber->first.uc_stack.ss_sp = stacks[thread];
    fiber->first.uc_stack.ss_size = STACK;
    fiber->first.uc_link = nullptr;
    makecontext(&fiber->first, live, 0);
    setcontext(&fiber->first);
    give_up("a fiber could not be started");
}

// xorshift64*
uint64_t random_state = 0x9E3779B97F4A7C15;
unsigned below(unsigned bound) {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return static_cast<unsigned>((random_state * 0x2545F4914F6CDD1D >> 32) % bound);
}

void shuffle(unsigned* order, unsigned count) {
    for (unsigned at = 0; at < count; ++at) {
        const unsigned other = below(at + 1);
        order[at] = order[other];
        order[other] = at;
    }
}

void run_block(unsigned threads) {
    // The content of shared memory is undefined.
    for (char* at = __start_standin_shared; at < __stop_standin_shared; ++at) {
        *at = static_cast<char>(below(256));
    }
    static unsigned order[MOST_THREADS];
    shuffle(order, threads);
    for (unsigned thread = 0; thread < threads; ++thread) {
        fibers[thread].state = Fiber::READY;
    }
    // From barrier to barrier, until all are through.
    for (;;) {
        unsigned done = 0, waiting = 0;
        for (unsigned at = 0; at < threads; ++at) {
            resume(order[at]);
            done += fibers[order[at]].state == Fiber::DONE;
            waiting += fibers[order[at]].state == Fiber::WAITING;
        }
        if (waiting == 0) {
            return;
        }
        if (done != 0) {
            give_up("some threads of a block wait at a barrier that others never reached");
        }
    }
}

// ---- Kernels by name ----

template <class T>
T param(void** params, unsigned at) {
    T value;
    memcpy(&value, params[at], sizeof(T));
    return value;
}

template <void (*convert)(void*, const unsigned char*, const void*, unsigned)>
void call_convert(void** params) {
    convert(param<void*>(params, 0), param<const unsigned char*>(params, 1), param<const void*>(params, 2),
            param<unsigned>(params, 3));
}

void call_step(void** params) { feedstock_step(param<const void*>(params, 0), param<unsigned long long>(params, 1)); }

void call_copy(void** params) {
    feedstock_copy(param<void*>(params, 0), param<const void*>(params, 1), param<unsigned long long>(params, 2));
}

const struct {
    const char* name;
    Kernel kernel;
} KERNELS[] = {
    {"feedstock_convert_b8_nhwc", call_convert<feedstock_convert_b8_nhwc>},
    {"feedstock_convert_b8_nchw", call_convert<feedstock_convert_b8_nchw>},
    {"feedstock_convert_b16_nhwc", call_convert<feedstock_convert_b16_nhwc>},
    {"feedstock_convert_b16_nchw", call_convert<feedstock_convert_b16_nchw>},
    {"feedstock_convert_b32_nhwc", call_convert<feedstock_convert_b32_nhwc>},
    {"feedstock_convert_b32_nchw", call_convert<feedstock_convert_b32_nchw>},
    {"feedstock_step", call_step},
    {"feedstock_copy", call_copy},
};

// One processor, whatever the number of devices: they take turns, a whole launch at a time.
pthread_mutex_t processor = PTHREAD_MUTEX_INITIALIZER;

void launch(unsigned gx, unsigned gy, unsigned threads) {
    gridDim = {gx, gy, 1};
    blockDim = {threads, 1, 1};
    const unsigned blocks = gx * gy;
    unsigned* order = static_cast<unsigned*>(malloc(blocks * sizeof(unsigned)));
    if (order == nullptr) {
        give_up("out of memory");
    }
    shuffle(order, blocks);
    for (unsigned at = 0; at < blocks; ++at) {
        blockIdx = {order[at] % gx, order[at] / gx, 0};
        run_block(threads);
    }
    free(order);
}

}  // namespace

// As cuLaunchKernel: params[i] points to the value of parameter i. Returns when the launch is through: 0; 1 for a name that
// no kernel has; 2 for a launch that a device would refuse, or that these kernels have no use for.
extern "C" int standin_launch(const char* name, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                              unsigned bz, unsigned shared_bytes, void** params) {
    Kernel found = nullptr;
    for (const auto& entry : KERNELS) {
        if (strcmp(entry.name, name) == 0) {
            found = entry.kernel;
        }
    }
    if (found == nullptr) {
        return 1;
    }
    const bool can = gx > 0 && gy > 0 && gz == 1 && bx > 0 && bx <= BLOCK && by == 1 && bz == 1 && gy <= 65535 &&
                     shared_bytes == 0 && static_cast<uint64_t>(gx) * gy <= UINT32_MAX;
    if (!can) {
        return 2;
    }
    pthread_mutex_lock(&processor);
    kernel = found;
    kernel_params = params;
    asked_to_wait = 0;
    launch(gx, gy, bx);
    const unsigned long long nanoseconds = asked_to_wait;
    pthread_mutex_unlock(&processor);
    sleep_for(nanoseconds);
    return 0;
}
