// CTC loss and gradient from logits, met in the middle.
//
// Shapes: N batch, T frames, V units (with blank), L labels. Every frame of every utterance is a step of a recursion that must be
// walked in order, so an utterance gets two blocks: one walks forwards from the first frame, one backwards from the last. Up to
// the middle each stores what it sees (ctc_halves); then each goes on through the other's half and turns what is stored there into
// posteriors of the labels (ctc_cross). T steps make loss and gradient, and the lattice is held once.
//
// Numbers. A state is mantissa * 2^exponent with a whole exponent of its own: sums and products alone, no logarithm, every
// operation exact to a float's relative rounding however small a probability is. A label's logit enters as exp(logit) in that
// form, with the frame's log-normaliser taken off as a whole power of two; what is left of the normaliser is summed apart.
//
// States. A pair is the blank before a label and the label: state l reaches blank and label of the next pair, so a pair asks its
// left neighbour for one number only. The walk backwards is the walk forwards over reversed frames and labels. Before the first
// frame all weight is in the first blank, so that first frames, empty targets and empty halves are no special cases.
//
// The lattice stores, per frame and label, the weight *before* the frame's own emission; times the other walk's weight *after* it,
// over the total, that is the posterior. The blank's posterior is what the labels leave of 1. At the i-th frame of a walk only i + 1
// labels can have been reached, so the lattice's rows form a triangle, then a rectangle.
//
// Compiled by NVRTC (no headers) with LOGIT_TYPE (0 float32, 1 float16, 2 bfloat16), PAIRS per thread, THREADS (the most in a block
// that walks), ROW_THREADS (threads to a row of logits: 32 or 256) and VECTOR (logits per load in whole-row passes).

#define ROW_BLOCK 256
#define ROWS (ROW_BLOCK / ROW_THREADS)
#define EVERYONE 0xffffffffu
// Emissions are fetched this many frames ahead of their use.
constexpr int AHEAD = PAIRS <= 2 ? 4 : PAIRS <= 4 ? 2 : 1;
// Unrolled where the arrays shall live in registers; beyond that they live in the thread's own memory, of which there is plenty.
constexpr int UNROLL = PAIRS <= 8 ? PAIRS : 1;

typedef long long Long;

struct __attribute__((aligned(8))) Wide {  // m * 2^e
    float m;
    int e;
};

struct __attribute__((aligned(8))) Frame {  // the log-normaliser: whole * ln 2 + part
    int whole;
    float part;
};

struct __attribute__((aligned(8))) Sorted {  // a label and where it stands in its target
    int unit;
    int place;
};

struct Problem {
    const void* logits;         // (N, T, V), units adjacent
    const Long* targets;        // (N, L)
    const Long* frames;         // (N,)
    const Long* labels;         // (N,)
    const float* slopes;        // (N,): gradients of the losses
    float* losses;              // (N,)
    Frame* normalisers;         // (N, T)
    Wide* states;               // (N, 2 walks, 2 blank and label, L + 1): where the walks stopped
    Wide* totals;               // (N,): weight of all alignments
    Long* spent;                // (N,): whether posteriors have taken the lattice's place
    Wide* lattice;              // (N, 2 walks, half)
    Sorted* sorted;             // (N, L)
    void* gradients;            // (N, T, V)
    Long logit_stride_n, logit_stride_t, target_stride_n, half;
    int N, T, V, L, blank, zero_infinity, store, again;
};

#define NOTHING (-(1 << 29))   // exponent of zero
#define SMALLEST (-(1 << 28))  // what is smaller is no alignment
#define LOG2E 1.44269502162933349609375f
#define LOG2E_LOW 1.925963033500683e-8f
#define LN2_HIGH 0.693147182464599609375f
#define LN2_LOW (-1.904654299957767878541e-9f)
// A float of this size has three binary digits behind the point: no probability can be told from it.
#define HUGE_LOGIT 1048576.0f
#define NOT_A_NUMBER __int_as_float(0x7fc00000)
#define INFINITE __int_as_float(0x7f800000)

// ---- logits ----

#if LOGIT_TYPE == 0
typedef float Raw;
static __device__ inline float read(Raw x) { return x; }
static __device__ inline Raw written(float x) { return x; }
#elif LOGIT_TYPE == 1
typedef unsigned short Raw;
#ifdef __CUDACC__
static __device__ inline float read(Raw x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
static __device__ inline Raw written(float x) {
    Raw y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#else
static inline float read(Raw x) { return half_to_float(x); }
static inline Raw written(float x) { return float_to_half(x); }
#endif
#else
typedef unsigned short Raw;
static __device__ inline float read(Raw x) { return __int_as_float((int)((unsigned)x << 16)); }
static __device__ inline Raw written(float x) {  // to the nearest, ties to even; a NaN stays one
    unsigned bits = (unsigned)__float_as_int(x);
    return x == x ? (Raw)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16) : (Raw)0x7fc0;
}
#endif

struct __attribute__((aligned(sizeof(Raw) * VECTOR))) Pack {
    Raw at[VECTOR];
};

// ---- numbers ----

static __device__ inline Wide wide(float m, int e) {
    Wide x;
    x.m = m;
    x.e = e;
    return x;
}

static __device__ inline Wide zero() { return wide(1.0f, NOTHING); }

// 2^d for d <= 1; 0 where a float has no such number.
static __device__ inline float power(int d) { return __int_as_float(max(d + 127, 0) << 23); }

// a + b, the mantissa from 1 to below the sum of theirs.
static __device__ inline Wide sum(Wide a, Wide b) {
    int e = max(a.e, b.e);
    return wide(a.m * power(a.e - e) + b.m * power(b.e - e), e);
}

static __device__ inline Wide sum(Wide a, Wide b, Wide c) {
    int e = max(max(a.e, b.e), c.e);
    return wide(a.m * power(a.e - e) + b.m * power(b.e - e) + c.m * power(c.e - e), e);
}

// a * b with the mantissa in [1, 2).
static __device__ inline Wide product(Wide a, Wide b) {
    int bits = __float_as_int(a.m * b.m);
    int e = a.e + b.e + (bits >> 23) - 127;
    return wide(__int_as_float((bits & 0x007fffff) | 0x3f800000), max(e, NOTHING));
}

// exp(x) / 2^whole, the mantissa in [0.7, 1.42].
static __device__ inline Wide exponential(float x, int whole) {
    bool inside = fabsf(x) <= HUGE_LOGIT;
    x = inside ? x : 0.0f;
    float n = rintf(x * LOG2E);
    float r = fmaf(-n, LN2_LOW, fmaf(-n, LN2_HIGH, x));
    float y = 1.0f / 5040;
    y = fmaf(y, r, 1.0f / 720);
    y = fmaf(y, r, 1.0f / 120);
    y = fmaf(y, r, 1.0f / 24);
    y = fmaf(y, r, 1.0f / 6);
    y = fmaf(y, r, 0.5f);
    y = fmaf(y, r, 1.0f);
    y = fmaf(y, r, 1.0f);
    return inside ? wide(y, (int)n - whole) : zero();
}

// A probability of the frame, as a float.
static __device__ inline float softmax(float x, Frame frame) {
    // -inf - whole stays -inf, and a frame without a normaliser makes all NaN.
    return exp2f(fmaf(x, LOG2E, -(float)frame.whole) + fmaf(x, LOG2E_LOW, -frame.part * LOG2E));
}

// ---- what a block knows of its utterance ----

struct Utterance {
    Long n;
    int frames, labels;
    const Raw* logits;
    const Long* targets;
};

static __device__ inline Utterance utterance(const Problem& p, Long n) {
    Utterance u;
    u.n = n;
    u.frames = (int)max(0ll, min(p.frames[n], (Long)p.T));
    u.labels = (int)max(0ll, min(p.labels[n], (Long)p.L));
    u.logits = (const Raw*)p.logits + n * p.logit_stride_n;
    u.targets = p.targets + n * p.target_stride_n;
    return u;
}

// Where row i of a walk begins in its half of the lattice, for targets of so many labels.
static __device__ inline Long row_start(Long i, Long labels) {
    return i < labels ? i * (i + 1) / 2 : labels * (labels + 1) / 2 + (i - labels) * labels;
}

static __device__ inline bool lost(Wide total) { return !(total.m == total.m) || total.e < SMALLEST; }

// ---- sums over the threads of a row ----

#if ROW_THREADS == 32
static __device__ inline void row_sync() { __syncwarp(); }
#else
static __device__ inline void row_sync() { __syncthreads(); }
#endif

template <bool MAXIMUM>
static __device__ inline float over_row(float x, float* scratch) {
    for (int distance = 16; distance > 0; distance >>= 1) {
        float other = __shfl_xor_sync(EVERYONE, x, distance);
        x = MAXIMUM ? fmaxf(x, other) : x + other;
    }
#if ROW_THREADS > 32
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    x = scratch[0];
    for (int warp = 1; warp < ROW_THREADS / 32; ++warp) x = MAXIMUM ? fmaxf(x, scratch[warp]) : x + scratch[warp];
#endif
    return x;
}

// ---- the log-normaliser of every frame: a row of logits to ROW_THREADS threads ----

extern "C" __global__ void __launch_bounds__(ROW_BLOCK) ctc_normalise(Problem p) {
    __shared__ float scratch[ROW_THREADS / 32];
    const Long row = (Long)blockIdx.x * ROWS + threadIdx.x / ROW_THREADS;
    const int lane = threadIdx.x % ROW_THREADS;
    if (row >= (Long)p.N * p.T) return;  // whole warps, where rows belong to warps; nobody, where to blocks
    const Long n = row / p.T;
    const int t = (int)(row % p.T);
    const Utterance u = utterance(p, n);
    if (t >= u.frames) return;  // all of the row's threads
    const Raw* logits = u.logits + t * p.logit_stride_t;
    float highest = -INFINITE;
    for (int v = lane * VECTOR; v < p.V; v += ROW_THREADS * VECTOR) {
        const Pack pack = *(const Pack*)(logits + v);
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) highest = fmaxf(highest, read(pack.at[k]));
    }
    highest = over_row<true>(highest, scratch);
    const bool usable = fabsf(highest) <= HUGE_LOGIT;
    const float base = usable ? highest : NOT_A_NUMBER;
    float total = 0.0f;
    for (int v = lane * VECTOR; v < p.V; v += ROW_THREADS * VECTOR) {
        const Pack pack = *(const Pack*)(logits + v);
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) total += exp2f((read(pack.at[k]) - base) * LOG2E);
    }
    total = over_row<false>(total, scratch);
    if (lane == 0) {
        Frame frame;
        frame.whole = 0;
        frame.part = NOT_A_NUMBER;  // a NaN among the logits, +inf, or -inf throughout
        if (total == total) {
            const float n_base = rintf(base * LOG2E);
            const float part = fmaf(-n_base, LN2_LOW, fmaf(-n_base, LN2_HIGH, base)) + logf(total);
            const float n_part = rintf(part * LOG2E);
            frame.whole = (int)n_base + (int)n_part;
            frame.part = fmaf(-n_part, LN2_LOW, fmaf(-n_part, LN2_HIGH, part));
        }
        p.normalisers[row] = frame;
    }
}

// ---- the walks ----

template <bool CROSSING>
struct Fetched {  // what a step reads from memory
    Raw blank;
    int whole;
    Raw label[PAIRS];
    Wide other[CROSSING ? PAIRS : 1];
};

// Hands a thread's last label to the thread on its right, in two parts between which there is time for other work. All threads
// of a block call both; blockDim.x is a multiple of 32. There are two buffers by turns: nobody writes one again before a barrier
// that its readers have to reach first.
static __device__ inline void to_right(Wide own, Wide (*edges)[33], int parity) {
    if (threadIdx.x % 32 == 31) edges[parity][threadIdx.x / 32 + 1] = own;
}

static __device__ inline Wide from_left(Wide own, Wide (*edges)[33], int parity) {
    Wide x;
    x.m = __shfl_up_sync(EVERYONE, own.m, 1);
    x.e = __shfl_up_sync(EVERYONE, own.e, 1);
    if (blockDim.x > 32) {
        __syncthreads();
        if (threadIdx.x % 32 == 0 && threadIdx.x > 0) x = edges[parity][threadIdx.x / 32];
    }
    return threadIdx.x == 0 ? zero() : x;
}

template <bool CROSSING>
static __device__ void walk(const Problem& p, const Utterance& u, bool backwards) {
    __shared__ Wide edges[2][33];
    const int own_half = backwards ? u.frames / 2 : (u.frames + 1) / 2;
    const int begin = CROSSING ? own_half : 0, end = CROSSING ? u.frames : own_half;
    const int first = threadIdx.x * PAIRS;
    const int L = u.labels;
    Wide* own_rows = p.lattice + (2 * u.n + (backwards ? 1 : 0)) * p.half;
    Wide* other_rows = p.lattice + (2 * u.n + (backwards ? 0 : 1)) * p.half;
    Wide* stop = p.states + (2 * u.n + (backwards ? 1 : 0)) * 2 * (Long)(p.L + 1);

    int unit[PAIRS];  // -1 behind the target's end, and for what is no unit: those have no weight
    bool skip[PAIRS];
    Wide blank[PAIRS], label[PAIRS];
#pragma unroll UNROLL
    for (int k = 0; k < PAIRS; ++k) {
        const int j = first + k;
        unit[k] = -1;
        skip[k] = false;
        if (j < L) {
            const Long y = u.targets[backwards ? L - 1 - j : j];
            if (y >= 0 && y < p.V) unit[k] = (int)y;
            if (j > 0) skip[k] = y != u.targets[backwards ? L - j : j - 1];
        }
        blank[k] = j == 0 ? wide(1.0f, 0) : zero();
        label[k] = zero();
        if (CROSSING && j <= L) {
            blank[k] = stop[j];
            label[k] = stop[p.L + 1 + j];
        }
    }
    Wide total = wide(1.0f, 0);
    if (CROSSING) total = p.totals[u.n];
    const float inverse = 1.0f / total.m;

    Fetched<CROSSING> now[AHEAD], next[AHEAD];
    auto fetch = [&](int i, Fetched<CROSSING>& into) {
        i = min(i, end - 1);
        const int t = backwards ? u.frames - 1 - i : i;
        const Raw* logits = u.logits + t * p.logit_stride_t;
        into.blank = logits[p.blank];
        into.whole = p.normalisers[u.n * p.T + t].whole;
        const int mirrored = u.frames - 1 - i;  // the same frame in the other walk
        const Wide* row = CROSSING ? other_rows + row_start(mirrored, L) : (const Wide*)0;
#pragma unroll UNROLL
        for (int k = 0; k < PAIRS; ++k) {
            into.label[k] = unit[k] >= 0 ? logits[unit[k]] : Raw(0);
            if (CROSSING) {
                const int place = L - 1 - first - k;
                into.other[k] = place >= 0 && place <= mirrored ? row[place] : zero();
            }
        }
    };
    auto step = [&](int i, const Fetched<CROSSING>& from) {
        to_right(label[PAIRS - 1], edges, i & 1);
        const Wide blank_weight = exponential(read(from.blank), from.whole);
        Wide weight[PAIRS];
#pragma unroll UNROLL
        for (int k = 0; k < PAIRS; ++k) {
            weight[k] = unit[k] >= 0 ? exponential(read(from.label[k]), from.whole) : zero();
        }
        Wide left = from_left(label[PAIRS - 1], edges, i & 1);
        const int mirrored = u.frames - 1 - i;
        Wide* row = CROSSING ? other_rows + row_start(mirrored, L) : own_rows + row_start(i, L);
#pragma unroll UNROLL
        for (int k = 0; k < PAIRS; ++k) {
            const int j = first + k;
            const Wide into_blank = sum(blank[k], left);
            left.e = skip[k] ? left.e : NOTHING;
            const Wide into_label = sum(label[k], blank[k], left);
            left = label[k];
            blank[k] = product(into_blank, blank_weight);
            label[k] = product(into_label, weight[k]);
            if (!CROSSING) {
                if (p.store && j < L && j <= i) row[j] = into_label;
            } else {
                const int place = L - 1 - j;
                if (place >= 0 && place <= mirrored) {
                    const int e = min(label[k].e + from.other[k].e - total.e, 64);
                    row[place] = wide(label[k].m * from.other[k].m * inverse * power(e), 0);
                }
            }
        }
    };
    if (begin < end) {
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) fetch(begin + a, now[a]);
    }
    for (int i = begin; i < end; i += AHEAD) {
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) fetch(i + AHEAD + a, next[a]);
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            if (i + a < end) step(i + a, now[a]);  // the same for the whole block: a barrier is inside
        }
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) now[a] = next[a];
    }
    if (!CROSSING) {
#pragma unroll UNROLL
        for (int k = 0; k < PAIRS; ++k) {
            const int j = first + k;
            if (j <= L) {
                stop[j] = blank[k];
                stop[p.L + 1 + j] = label[k];
            }
        }
    }
}

// Two blocks to an utterance. With `again` only where posteriors have taken the lattice's place (a second backward pass).
extern "C" __global__ void __launch_bounds__(THREADS, 1) ctc_halves(Problem p) {
    const Long n = blockIdx.x / 2;
    if (p.again && p.spent[n] == 0) return;
    walk<false>(p, utterance(p, n), blockIdx.x % 2 == 1);
}

// The total over all alignments, and the loss: an utterance to a block.
extern "C" __global__ void __launch_bounds__(ROW_BLOCK) ctc_meet(Problem p) {
    __shared__ Wide weights[ROW_BLOCK];
    __shared__ double parts[ROW_BLOCK];
    const Utterance u = utterance(p, blockIdx.x);
    const int L = u.labels;
    const Long pairs = p.L + 1;
    const Wide* blanks = p.states + u.n * 4 * pairs;
    const Wide* labels = blanks + pairs;
    const Wide* other_blanks = blanks + 2 * pairs;
    const Wide* other_labels = blanks + 3 * pairs;
    Wide weight = zero();
    for (int j = threadIdx.x; j <= L; j += ROW_BLOCK) {
        // What the walk backwards would carry into the pair's states at the frame where the walk forwards stopped.
        const int b = L - j, l = L - 1 - j;
        Wide into = b > 0 ? sum(other_blanks[b], other_labels[b - 1]) : other_blanks[b];
        weight = sum(weight, product(into, blanks[j]));
        if (l >= 0) {
            const bool skip = l > 0 && u.targets[j] != u.targets[j + 1];
            into = sum(other_labels[l], other_blanks[l], skip ? other_labels[l - 1] : zero());
            weight = sum(weight, product(into, labels[j]));
        }
        weight = product(weight, wide(1.0f, 0));
    }
    double part = 0.0;
    for (int t = threadIdx.x; t < u.frames; t += ROW_BLOCK) part += (double)p.normalisers[u.n * p.T + t].part;
    weights[threadIdx.x] = weight;
    parts[threadIdx.x] = part;
    __syncthreads();
    for (int distance = ROW_BLOCK / 2; distance > 0; distance >>= 1) {
        if ((int)threadIdx.x < distance) {
            weights[threadIdx.x] = product(sum(weights[threadIdx.x], weights[threadIdx.x + distance]), wide(1.0f, 0));
            parts[threadIdx.x] += parts[threadIdx.x + distance];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        Wide total = weights[0];
        double loss = parts[0] - (log((double)total.m) + (double)total.e * 0.6931471805599453);
        if (!(parts[0] == parts[0])) {
            total.m = NOT_A_NUMBER;
        } else if (total.e < SMALLEST) {
            loss = p.zero_infinity ? 0.0 : (double)INFINITE;
        }
        p.totals[u.n] = total;
        p.losses[u.n] = (float)loss;
        p.spent[u.n] = 0;
    }
}

// Each label's rank by unit, then place, so that equal units can be summed in order.
static __device__ void rank(const Problem& p, Long index) {
    const int chunks = (p.L + blockDim.x - 1) / blockDim.x;
    const Utterance u = utterance(p, index / chunks);
    const int j = (int)(index % chunks) * blockDim.x + threadIdx.x;
    if (j >= u.labels) return;
    const Long unit = u.targets[j];
    int before = 0;
    for (int k = 0; k < u.labels; ++k) {
        const Long other = u.targets[k];
        before += other < unit || (other == unit && k < j);
    }
    Sorted entry;
    entry.unit = unit >= 0 && unit < p.V ? (int)unit : -1;
    entry.place = j;
    p.sorted[u.n * p.L + before] = entry;
}

// Blocks 0 to 2N - 1 walk on, two to an utterance; those behind them sort the labels.
extern "C" __global__ void __launch_bounds__(THREADS, 1) ctc_cross(Problem p) {
    if (blockIdx.x >= 2u * (unsigned)p.N) {
        rank(p, (Long)blockIdx.x - 2 * (Long)p.N);
        return;
    }
    const Utterance u = utterance(p, blockIdx.x / 2);
    if (lost(p.totals[u.n])) return;
    walk<true>(p, u, blockIdx.x % 2 == 1);
    if (threadIdx.x == 0) p.spent[u.n] = 1;  // both blocks write the same
}

// softmax - posterior: a row of logits to ROW_THREADS threads.
extern "C" __global__ void __launch_bounds__(ROW_BLOCK) ctc_gradient(Problem p) {
    __shared__ float scratch[ROW_THREADS / 32];
    const Long row = (Long)blockIdx.x * ROWS + threadIdx.x / ROW_THREADS;
    const int lane = threadIdx.x % ROW_THREADS;
    if (row >= (Long)p.N * p.T) return;  // as in ctc_normalise
    const Long n = row / p.T;
    const int t = (int)(row % p.T);
    const Utterance u = utterance(p, n);
    const Wide total = p.totals[n];
    Raw* gradients = (Raw*)p.gradients + row * p.V;
    const bool outside = t >= u.frames;
    if (outside || lost(total)) {  // all of the row's threads
        const bool none = outside || (total.m == total.m && p.zero_infinity);
        const Raw value = written(none ? 0.0f : NOT_A_NUMBER);
        for (int v = lane; v < p.V; v += ROW_THREADS) gradients[v] = value;
        return;
    }
    const float slope = p.slopes[n];
    const Frame frame = p.normalisers[row];
    const Raw* logits = u.logits + t * p.logit_stride_t;
    for (int v = lane * VECTOR; v < p.V; v += ROW_THREADS * VECTOR) {
        const Pack pack = *(const Pack*)(logits + v);
        Pack result;
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) result.at[k] = written(slope * softmax(read(pack.at[k]), frame));
        *(Pack*)(gradients + v) = result;
    }
    row_sync();  // the units of the target are written once more, by other threads
    const bool backwards = t >= (u.frames + 1) / 2;
    const int i = backwards ? u.frames - 1 - t : t;
    const Wide* posteriors = p.lattice + (2 * n + (backwards ? 1 : 0)) * p.half + row_start(i, u.labels);
    const Sorted* sorted = p.sorted + n * p.L;
    float labels = 0.0f;
    for (int k = lane; k < u.labels; k += ROW_THREADS) {
        const int unit = sorted[k].unit;
        if (k > 0 && sorted[k - 1].unit == unit) continue;  // whoever has the first of a unit sums them all
        float posterior = 0.0f;
        for (int q = k; q < u.labels && sorted[q].unit == unit; ++q) {
            const int place = backwards ? u.labels - 1 - sorted[q].place : sorted[q].place;
            if (place <= i) posterior += posteriors[place].m;
        }
        if (unit != p.blank) {
            gradients[unit] = written(slope * (softmax(read(logits[unit]), frame) - posterior));
            labels += posterior;
        }
    }
    labels = over_row<false>(labels, scratch);
    if (lane == 0) gradients[p.blank] = written(slope * (softmax(read(logits[p.blank]), frame) - (1.0f - labels)));
}
