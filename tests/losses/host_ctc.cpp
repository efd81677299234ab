// The kernels of ctc.cu as functions of the host.

#include "host_cuda.h"

#include "ctc.cu"

static Problem problem;

#define RUN(kernel)                                                                                                       \
    extern "C" int run_##kernel(const Problem* p, unsigned blocks, unsigned threads, unsigned seed) {                      \
        problem = *p;                                                                                                      \
        return run([] { kernel(problem); }, blocks, threads, seed);                                                        \
    }

RUN(ctc_normalise)
RUN(ctc_halves)
RUN(ctc_meet)
RUN(ctc_cross)
RUN(ctc_gradient)

extern "C" void host_halves(const float* x, unsigned short* halves, float* back, int count) {
    for (int i = 0; i < count; ++i) {
        halves[i] = float_to_half(x[i]);
        back[i] = half_to_float(halves[i]);
    }
}
