// Runs the blocks of a CUDA kernel on the host, a fiber to a thread, for tests of the very source that a GPU runs.
//
// Fibers change only at barriers and shuffles, in an order drawn from a seed at every turn: a result that depends on the order is a
// race. A barrier that not all threads of a block (of a warp) reach at the same line is an error, not a hang.

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <vector>

struct Dim {
    unsigned x;
};
struct Fiber {
    ucontext_t start;
    jmp_buf place;
    Dim thread;
    bool begun, ended;
    int waits;  // 0 running, 1 for the block, 2 for the warp
    int line;
    unsigned long long given;
};

static Dim blockIdx, blockDim, gridDim;
static std::vector<Fiber> fibers;
static Fiber* current;
static jmp_buf scheduler;
static void (*body)();
static char* stacks;
static const size_t STACK = 256 << 10;
static const unsigned MOST = 1024;

#define threadIdx (current->thread)
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __syncthreads() wait_for(1, __LINE__)
#define __syncwarp() wait_for(2, __LINE__)
#define __shfl_up_sync(mask, value, delta) shuffled(value, lane() >= (delta) ? lane() - (delta) : lane(), __LINE__)
#define __shfl_xor_sync(mask, value, bits) shuffled(value, lane() ^ (bits), __LINE__)

using std::max;
using std::min;

static inline int lane() { return current->thread.x % 32; }

static void wait_for(int whom, int line) {
    current->waits = whom;
    current->line = line;
    if (!_setjmp(current->place)) _longjmp(scheduler, 1);
}

template <class T>
static T shuffled(T value, int source, int line) {
    static_assert(sizeof(T) <= sizeof current->given, "a shuffle moves a word");
    memcpy(&current->given, &value, sizeof value);
    wait_for(2, line);
    memcpy(&value, &fibers[current->thread.x / 32 * 32 + source].given, sizeof value);
    wait_for(2, -line);  // nobody gives the next value before all have taken this one
    return value;
}

static inline float __int_as_float(int bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline int __float_as_int(float x) {
    int bits;
    memcpy(&bits, &x, sizeof x);
    return bits;
}

static inline float half_to_float(unsigned short h) {
    const int sign = (h & 0x8000) << 16, exponent = h >> 10 & 31, digits = h & 1023;
    if (exponent == 31) return __int_as_float(sign | 0x7f800000 | digits << 13);
    return copysignf(exponent ? ldexpf(1024.0f + digits, exponent - 25) : ldexpf((float)digits, -24), __int_as_float(sign | 1));
}

static inline unsigned short float_to_half(float x) {
    const unsigned short sign = (unsigned)__float_as_int(x) >> 16 & 0x8000;
    const float size = fabsf(x);
    if (!(size == size)) return 0x7fff;
    if (size >= 65520.0f) return sign | 0x7c00;
    int exponent = -13;
    if (size > 0) frexpf(size, &exponent);
    exponent = max(exponent, -13);  // subnormal numbers share the smallest
    const int digits = (int)rintf(ldexpf(size, 11 - exponent));  // to the nearest, ties to even
    return sign | (unsigned short)(((exponent + 13) << 10) + digits);
}

static void begin() {
    body();
    current->ended = true;
    _longjmp(scheduler, 1);
}

static void resume(Fiber& fiber) {
    current = &fiber;
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.start);
}

// Lets those go on who are together at their barrier; false where nobody can.
static bool release(unsigned threads) {
    bool any = false;
    bool block = true;
    for (unsigned i = 0; i < threads; ++i) block &= fibers[i].waits == 1 && fibers[i].line == fibers[0].line && !fibers[i].ended;
    for (unsigned warp = 0; warp < threads; warp += 32) {
        bool together = true;
        for (unsigned i = warp; i < warp + 32; ++i) {
            together &= fibers[i].waits == 2 && fibers[i].line == fibers[warp].line && !fibers[i].ended;
        }
        for (unsigned i = warp; (block || together) && i < warp + 32; ++i) {
            fibers[i].waits = 0;
            any = true;
        }
    }
    return any;
}

// Returns 0, or the line at which threads wait for some who never come.
static int run(void (*kernel)(), unsigned blocks, unsigned threads, unsigned seed) {
    if (!stacks) {
        stacks = (char*)mmap(0, STACK * MOST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        fibers.resize(MOST);
    }
    if (threads % 32 || threads > MOST || !threads) return -1;
    body = kernel;
    blockDim.x = threads;
    gridDim.x = blocks;
    std::vector<unsigned> order(threads);
    for (unsigned i = 0; i < threads; ++i) order[i] = i;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        for (unsigned i = 0; i < threads; ++i) {
            Fiber& fiber = fibers[i];
            fiber.thread.x = i;
            fiber.begun = fiber.ended = false;
            fiber.waits = 0;
            getcontext(&fiber.start);
            fiber.start.uc_stack.ss_sp = stacks + i * STACK;
            fiber.start.uc_stack.ss_size = STACK;
            fiber.start.uc_link = 0;
            makecontext(&fiber.start, begin, 0);
        }
        for (unsigned left = threads; left;) {
            if (seed) {
                for (unsigned i = threads - 1; i; --i) {
                    seed = seed * 1664525u + 1013904223u;
                    std::swap(order[i], order[(seed >> 8) % (i + 1)]);
                }
            }
            for (unsigned i : order) {
                Fiber& fiber = fibers[i];
                if (fiber.ended || fiber.waits) continue;
                resume(fiber);
                left -= fiber.ended;
            }
            if (left && !release(threads)) {
                for (unsigned i = 0; i < threads; ++i) {
                    if (!fibers[i].ended) return fibers[i].line;
                }
            }
        }
    }
    return 0;
}
