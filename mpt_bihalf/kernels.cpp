// The few loops that torch has no single pass for. Built by setup.py where there is a compiler; kernels.py calls them and
// does the same in NumPy and torch, with the same bits.
//
// All tensors are contiguous float32 or bytes.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t BLOCK = 256;            // elements looked at together
constexpr int64_t CHUNK = 64 * BLOCK;     // elements a thread takes at once
constexpr int64_t HINT = 3;               // numbers that say where to look in a row
constexpr int64_t FEW = 64;               // values of which one is found by comparing each with all
constexpr int64_t SUMS = 128;             // sums of a row that are kept side by side
constexpr int64_t WORDS = 1024;           // words of 32 bits that a fingerprint adds up before it mixes them
constexpr float INFINITE = std::numeric_limits<float>::infinity();

// The lowest chosen value of a row, and how many of those equal to it are chosen: those of highest index.
struct Cut {
    float value;
    int64_t ties;
};

template <bool Absolute>
inline float key(float x) {
    return Absolute ? std::fabs(x) : x;
}

// Those of LANES neighbours, at x, that have a bit in `which`, one after the other; up to LANES numbers are written.
template <bool Absolute>
inline void gather_each(uint32_t which, const float *x, float *to) {
    for (; which; which &= which - 1) *to++ = key<Absolute>(x[__builtin_ctz(which)]);
}

// LANES neighbours compared with a bound at once: a bit for each that is higher, or at least as high.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
constexpr int64_t LANES = 16;
template <bool Absolute>
struct Lanes {
    __m512 values;
    explicit Lanes(const float *x) : values(_mm512_loadu_ps(x)) {
        if (Absolute) values = _mm512_abs_ps(values);
    }
    uint32_t above(float bound) const { return _mm512_cmp_ps_mask(values, _mm512_set1_ps(bound), _CMP_GT_OQ); }
    uint32_t at_least(float bound) const { return _mm512_cmp_ps_mask(values, _mm512_set1_ps(bound), _CMP_GE_OQ); }
    uint32_t equal(float value) const { return _mm512_cmp_ps_mask(values, _mm512_set1_ps(value), _CMP_EQ_OQ); }
    void gather(uint32_t which, const float *, float *to) const {
        _mm512_storeu_ps(to, _mm512_maskz_compress_ps((__mmask16)which, values));
    }
};
inline uint32_t members(const uint8_t *among) {
    const __m128i bytes = _mm_loadu_si128((const __m128i *)among);
    return _mm_test_epi8_mask(bytes, bytes);
}
inline void write(uint32_t which, uint8_t *out) {
    _mm_storeu_si128((__m128i *)out, _mm_maskz_set1_epi8((__mmask16)which, 1));
}
#elif defined(__AVX2__)
constexpr int64_t LANES = 8;
template <bool Absolute>
struct Lanes {
    __m256 values;
    explicit Lanes(const float *x) : values(_mm256_loadu_ps(x)) {
        if (Absolute) values = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), values);
    }
    uint32_t above(float bound) const {
        return _mm256_movemask_ps(_mm256_cmp_ps(values, _mm256_set1_ps(bound), _CMP_GT_OQ));
    }
    uint32_t at_least(float bound) const {
        return _mm256_movemask_ps(_mm256_cmp_ps(values, _mm256_set1_ps(bound), _CMP_GE_OQ));
    }
    uint32_t equal(float value) const {
        return _mm256_movemask_ps(_mm256_cmp_ps(values, _mm256_set1_ps(value), _CMP_EQ_OQ));
    }
    void gather(uint32_t which, const float *x, float *to) const { gather_each<Absolute>(which, x, to); }
};
inline uint32_t members(const uint8_t *among) {
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)among);
    return 0xff & ~_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_setzero_si128()));
}
inline void write(uint32_t which, uint8_t *out) {
    const __m128i bits = _mm_set1_epi64x((int64_t)0x8040201008040201);
    const __m128i of_bytes = _mm_and_si128(_mm_set1_epi8((char)which), bits);
    _mm_storel_epi64((__m128i *)out, _mm_and_si128(_mm_cmpeq_epi8(of_bytes, bits), _mm_set1_epi8(1)));
}
#else
constexpr int64_t LANES = 1;
template <bool Absolute>
struct Lanes {
    float value;
    explicit Lanes(const float *x) : value(key<Absolute>(*x)) {}
    uint32_t above(float bound) const { return value > bound; }
    uint32_t at_least(float bound) const { return value >= bound; }
    uint32_t equal(float other) const { return value == other; }
    void gather(uint32_t which, const float *x, float *to) const { gather_each<Absolute>(which, x, to); }
};
inline uint32_t members(const uint8_t *among) { return *among; }
inline void write(uint32_t which, uint8_t *out) { *out = which; }
#endif

// Values that were gathered, with room for more.
struct Gathered {
    std::vector<float> values;
    int64_t count = 0;
    float *room(int64_t more) {
        if ((int64_t)values.size() < count + more) values.resize(2 * (count + more));
        return values.data() + count;
    }
};

// Counts what lies above the bracket [low, high] and gathers what lies in it.
template <bool Absolute, bool Among>
int64_t scan(const float *x, const uint8_t *among, int64_t begin, int64_t end, float low, float high, Gathered &inside) {
    int64_t above = 0, i = begin;
    while (i + LANES <= end) {
        const int64_t stop = std::min(i + BLOCK, end - (end - i) % LANES);
        float *to = inside.room(BLOCK + LANES), *const from = to;
        for (; i < stop; i += LANES) {
            const Lanes<Absolute> lanes(x + i);
            const uint32_t counted = Among ? members(among + i) : ~0u;
            const uint32_t higher = lanes.above(high);
            above += __builtin_popcount(higher & counted);
            const uint32_t within = lanes.at_least(low) & ~higher & counted;
            lanes.gather(within, x + i, to);
            to += __builtin_popcount(within);
        }
        inside.count += to - from;
    }
    for (; i < end; i++) {
        const float value = key<Absolute>(x[i]);
        if (Among && !among[i]) continue;
        above += value > high;
        if (value >= low && !(value > high)) *inside.room(1) = value, inside.count++;
    }
    return above;
}

// The value at this rank of what was gathered, from the top, and how many of those equal to it rank at or above there.
Cut at_rank(Gathered &gathered, int64_t rank) {
    const int64_t count = gathered.count, padded = (count + FEW / 4 - 1) / (FEW / 4) * (FEW / 4);
    std::fill_n(gathered.room(padded - count), padded - count, NAN);  // neither higher than a value nor equal to it
    float *values = gathered.values.data();
    if (count > FEW) std::nth_element(values, values + rank, values + count, std::greater<float>());
    for (int64_t i = count > FEW ? rank : 0;; i++) {
        int32_t higher = 0, equal = 0;
        for (int64_t j = 0; j < padded; j++) higher += values[j] > values[i], equal += values[j] == values[i];
        if (higher <= rank && rank < higher + equal) return {values[i], rank - higher + 1};
    }
}

// A bracket that very likely holds the `count`-th largest of `total`, from an even sample of the row.
template <bool Absolute, bool Among>
void sample_bracket(const float *x, const uint8_t *among, int64_t size, int64_t count, int64_t total, float *low,
                    float *high) {
    // Sorting the sample and gathering its bracket cost about the same at size^(2/3) (Floyd and Rivest 1975).
    const int64_t wanted = std::min(size, std::max<int64_t>(256, (int64_t)std::pow((double)size, 2.0 / 3)));
    const double stride = (double)size / wanted;
    std::vector<float> sample;
    sample.reserve(wanted);
    for (int64_t s = 0; s < wanted; s++) {
        const int64_t i = (int64_t)(s * stride);
        if (!Among || among[i]) sample.push_back(key<Absolute>(x[i]));
    }
    const int64_t m = sample.size();
    if (m < 16) {
        *low = -INFINITE, *high = INFINITE;
        return;
    }
    std::sort(sample.begin(), sample.end());
    const double share = (double)count / total, at = m * (1 - share);
    const double margin = 3.5 * std::sqrt(m * share * (1 - share)) + 4;
    const int64_t left = (int64_t)(at - margin), right = (int64_t)(at + margin) + 1;
    *low = left < 0 ? -INFINITE : sample[left];
    *high = right >= m ? INFINITE : sample[right];
}

inline int64_t count_members(const uint8_t *among, int64_t size) {
    int64_t total = 0;
    for (int64_t start = 0; start < size; start += BLOCK / 2) {
        const int64_t stop = std::min(start + BLOCK / 2, size);
        uint8_t part = 0;
        for (int64_t i = start; i < stop; i++) part += among[i];
        total += part;
    }
    return total;
}

// The cut with exactly `count` (of those that count) at or above it. `hint` is where to look first: a middle, a half
// width, and how far the middle lies beyond the last cut, as cuts drift (NaN: nowhere). It is left as what to try next time,
// and never changes the answer.
template <bool Absolute, bool Among, class Scan>
Cut find_cut(const float *x, const uint8_t *among, int64_t size, int64_t count, float *hint, Gathered &inside,
             Scan scan_all) {
    if (count <= 0) return {INFINITE, 0};
    if (!Among && count >= size) return {-INFINITE, size};
    const float expected = hint[0], last = hint[0] - hint[2];
    for (int attempt = expected == expected ? 0 : 1; attempt < 3; attempt++) {
        float low = -INFINITE, high = INFINITE;
        if (attempt == 0) {
            low = hint[0] - hint[1], high = hint[0] + hint[1];
        } else if (attempt == 1) {
            const int64_t total = Among ? count_members(among, size) : size;
            sample_bracket<Absolute, Among>(x, among, size, count, total, &low, &high);
        }
        inside.count = 0;
        const int64_t above = scan_all(low, high);
        const int64_t rank = count - above - 1;  // of the cut among the gathered, from the top
        const int64_t found = inside.count;
        if (rank < 0 || rank >= found) continue;
        const Cut at = at_rank(inside, rank);
        const float missed = std::fabs(at.value - expected), moved = at.value - last;
        if (attempt == 0) {
            hint[1] = std::max(4 * missed, hint[1] * std::min(1.0f, (size / 256 + 16) / (float)found));
        } else {
            hint[1] = missed == missed ? 4 * missed : (high - low) / 8;
        }
        if (!(hint[1] < INFINITE)) hint[1] = std::fabs(at.value) / 16;
        hint[2] = moved == moved ? (hint[2] + moved) / 2 : 0;
        hint[0] = at.value + hint[2];
        return at;
    }
    return {INFINITE, 0};  // NaN among the values: there is no order to cut
}

// f(0) + ... + f(n - 1) in an order that vectors keep and that other languages can repeat: every SUMS-th together, then
// the upper half of these sums added to the lower one until one is left.
template <class F>
inline float sum_of(int64_t n, F f) {
    float sums[SUMS];
    int64_t left = std::min(n, SUMS);
    for (int64_t i = 0; i < left; i++) sums[i] = f(i);
    for (int64_t start = SUMS; start < n; start += SUMS) {
        const int64_t stop = std::min(SUMS, n - start);
        if (stop == SUMS)
            for (int64_t i = 0; i < SUMS; i++) sums[i] += f(start + i);
        else
            for (int64_t i = 0; i < stop; i++) sums[i] += f(start + i);
    }
    while (left > 1) {
        const int64_t half = (left + 1) / 2;
        for (int64_t i = 0; i < left - half; i++) sums[i] += sums[half + i];
        left = half;
    }
    return sums[0];
}

// out[i] = whether x[i] is at least the cut's value; returns how many are equal to it.
template <bool Absolute>
int64_t choose(const float *x, int64_t begin, int64_t end, Cut cut, uint8_t *out) {
    int64_t equal = 0, i = begin;
    for (; i + LANES <= end; i += LANES) {
        const Lanes<Absolute> lanes(x + i);
        write(lanes.at_least(cut.value), out + i);
        equal += __builtin_popcount(lanes.equal(cut.value));
    }
    for (; i < end; i++) {
        const float value = key<Absolute>(x[i]);
        out[i] = value >= cut.value, equal += value == cut.value;
    }
    return equal;
}

// Takes back of those equal to the cut's value what ranks below the lowest that is chosen.
template <bool Absolute, bool Among>
void drop_ties(const float *x, const uint8_t *among, int64_t size, Cut cut, uint8_t *out) {
    for (int64_t i = size; i-- > 0;) {
        if (key<Absolute>(x[i]) != cut.value) continue;
        if (!cut.ties) out[i] = 0;
        else if (!Among || among[i]) cut.ties--;
    }
}

// `scan` and `choose` of a whole row by all threads.
template <bool Absolute, bool Among>
int64_t scan_together(const float *x, const uint8_t *among, int64_t size, float low, float high, Gathered &inside) {
    int64_t above = 0;
#pragma omp parallel reduction(+ : above)
    {
        Gathered mine;
#pragma omp for schedule(static)
        for (int64_t begin = 0; begin < size; begin += CHUNK)
            above += scan<Absolute, Among>(x, among, begin, std::min(begin + CHUNK, size), low, high, mine);
#pragma omp critical
        std::copy_n(mine.values.data(), mine.count, inside.room(mine.count)), inside.count += mine.count;
    }
    return above;
}

template <bool Absolute>
int64_t choose_together(const float *x, int64_t size, Cut cut, uint8_t *out) {
    int64_t equal = 0;
#pragma omp parallel for schedule(static) reduction(+ : equal)
    for (int64_t begin = 0; begin < size; begin += CHUNK)
        equal += choose<Absolute>(x, begin, std::min(begin + CHUNK, size), cut, out);
    return equal;
}

// The largest of a row; together: by all threads.
template <bool Absolute, bool Among, bool Together>
void top_of_row(const float *x, const uint8_t *among, int64_t size, int64_t count, float *hint, uint8_t *out,
                Gathered &inside) {
    const Cut cut = find_cut<Absolute, Among>(x, among, size, count, hint, inside, [&](float low, float high) {
        return Together ? scan_together<Absolute, Among>(x, among, size, low, high, inside)
                        : scan<Absolute, Among>(x, among, 0, size, low, high, inside);
    });
    const int64_t equal = Together ? choose_together<Absolute>(x, size, cut, out) : choose<Absolute>(x, 0, size, cut, out);
    if (equal > cut.ties) drop_ties<Absolute, Among>(x, among, size, cut, out);
}

template <bool Absolute, bool Among>
void top_of_rows(const float *x, const uint8_t *among, int64_t rows, int64_t size, int64_t count, const int64_t *counts,
                 float *hints, uint8_t *out) {
    const bool together = rows < 8 && size >= 4 * CHUNK;
    const auto run = together ? top_of_row<Absolute, Among, true> : top_of_row<Absolute, Among, false>;
#pragma omp parallel if (!together && rows * size > CHUNK)
    {
        Gathered inside;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            run(x + row * size, Among ? among + row * size : nullptr, size, counts ? counts[row] : count,
                hints + HINT * row, out + row * size, inside);
    }
}

// Every bit of z bears on every bit of what it gives (the finaliser of splitmix64).
inline uint64_t mixed(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

struct Multipliers {
    uint32_t of[WORDS];
    Multipliers() {
        for (int64_t i = 0; i < WORDS; i++) of[i] = (uint32_t)(mixed(i + 1) >> 32);
    }
};

}  // namespace

extern "C" {

// The checksum of this file as it was when it was compiled.
uint32_t mpt_source() { return SOURCE; }

// out[r, i] = 1 where x[r, i] (its magnitude, with `absolute`) is among the counts[r] largest of its row; without `counts`
// among the `count` largest. With `among` only
// its members count; `out` says of every element whether it ranks at or above the lowest
// chosen one.
void mpt_largest(const float *x, int absolute, const uint8_t *among, int64_t rows, int64_t size, int64_t count,
                 const int64_t *counts, float *hints, uint8_t *out) {
    auto run = absolute ? (among ? top_of_rows<true, true> : top_of_rows<true, false>)
                        : (among ? top_of_rows<false, true> : top_of_rows<false, false>);
    run(x, among, rows, size, count, counts, hints, out);
}

// totals[r] = how many bytes of row r are 1.
void mpt_count(const uint8_t *mask, int64_t rows, int64_t size, int64_t *totals) {
#pragma omp parallel for schedule(static) if (rows * size > CHUNK)
    for (int64_t row = 0; row < rows; row++) totals[row] = count_members(mask + row * size, size);
}

// A number that tells contents of this memory apart: words times multipliers, added up in blocks; each sum is mixed with the
// block's place. Another content has the same with a chance near 2^-32. A word that is not whole ends in zeros.
uint64_t mpt_fingerprint(const uint8_t *memory, int64_t bytes) {
    static const Multipliers multipliers;
    const int64_t words = bytes / 4, blocks = (words + WORDS - 1) / WORDS;
    uint32_t rest = 0;
    std::memcpy(&rest, memory + 4 * words, bytes % 4);
    uint64_t total = mixed(rest + ((uint64_t)bytes << 32));
#pragma omp parallel for schedule(static) reduction(+ : total) if (words > CHUNK)
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t count = std::min(WORDS, words - block * WORDS);
        const uint8_t *start = memory + 4 * block * WORDS;
        uint64_t sum = 0;
        for (int64_t i = 0; i < count; i++) {
            uint32_t word;
            std::memcpy(&word, start + 4 * i, 4);
            sum += (uint64_t)word * multipliers.of[i];
        }
        total += mixed(sum + mixed(block + 1));
    }
    return total;
}

// The sum of abs(w) over the mask in units of 1 / units, each below 2^30 and rounded down: exact, so in any order the same.
int64_t mpt_masked_magnitude(const float *w, const uint8_t *mask, float units, int64_t size) {
    int64_t total = 0;
#pragma omp parallel for schedule(static) reduction(+ : total) if (size > CHUNK)
    for (int64_t begin = 0; begin < size; begin += CHUNK) {
        const int64_t end = std::min(begin + CHUNK, size);
        for (int64_t i = begin; i < end; i++) total += (int32_t)(std::fabs(w[i]) * units) & -(int32_t)mask[i];
    }
    return total;
}

// out[r, i] = +alpha[r] or -alpha[r] by positive[r, i]; 0 where mask (if given) is 0.
void mpt_signed(const uint8_t *positive, const uint8_t *mask, const float *alphas, int64_t rows, int64_t size, float *out) {
#pragma omp parallel for collapse(2) schedule(static) if (rows * size > CHUNK)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t start = 0; start < size; start += CHUNK) {
            const int64_t begin = row * size + start, end = row * size + std::min(start + CHUNK, size);
            uint32_t alpha;  // its bits, of which the highest is the sign
            std::memcpy(&alpha, alphas + row, sizeof alpha);
            if (mask) {
#pragma GCC ivdep
                for (int64_t i = begin; i < end; i++) {
                    const uint32_t bits = (alpha ^ (uint32_t)(positive[i] ^ 1) << 31) & -(uint32_t)mask[i];
                    std::memcpy(out + i, &bits, sizeof bits);
                }
            } else {
                for (int64_t i = begin; i < end; i++) out[i] = positive[i] ? alphas[row] : -alphas[row];
            }
        }
    }
}

// Each row's mean, its unbiased deviation (1 where all are equal but for rounding) and the mean of abs(w - mean) /
// deviation over the mask, if given (0 where all are equal); and positive[r, i] = whether w[r, i] is at least the mean.
void mpt_standardise(const float *w, const uint8_t *mask, int64_t rows, int64_t size, uint8_t *positive, float *means,
                     float *deviations, float *magnitudes) {
#pragma omp parallel for schedule(static) if (rows * size > CHUNK)
    for (int64_t row = 0; row < rows; row++) {
        const float *x = w + row * size;
        const float mean = sum_of(size, [&](int64_t i) { return x[i]; }) / (float)size;
        const float squares = sum_of(size, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); });
        const float deviation = std::sqrt(squares / (float)std::max<int64_t>(size - 1, 1));
        const bool equal = deviation <= 8 * FLT_EPSILON * std::fabs(mean);
        const float least = equal ? -INFINITE : 0;
        uint8_t *sign = positive + row * size;
        for (int64_t i = 0; i < size; i++) sign[i] = x[i] - mean >= least;
        float count = (float)size, magnitude;
        if (mask) {
            const uint8_t *kept = mask + row * size;
            int64_t total = 0;
            for (int64_t i = 0; i < size; i++) total += kept[i];
            count = (float)total;
            magnitude = sum_of(size, [&](int64_t i) { return std::fabs(x[i] - mean) * kept[i]; });
        } else {
            magnitude = sum_of(size, [&](int64_t i) { return std::fabs(x[i] - mean); });
        }
        means[row] = equal ? x[0] : mean;
        deviations[row] = equal ? 1 : deviation;
        magnitudes[row] = magnitude / count / deviations[row] * !equal;
    }
}

// Of each row the sum of +value or -value by positive, or of abs(value) where that is null, over the mask, if given.
void mpt_signed_sums(const float *values, const uint8_t *positive, const uint8_t *mask, int64_t rows, int64_t size,
                     float *out) {
#pragma omp parallel for schedule(static) if (rows * size > CHUNK)
    for (int64_t row = 0; row < rows; row++) {
        const float *x = values + row * size;
        const uint8_t *above = positive + (positive ? row * size : 0), *kept = mask + (mask ? row * size : 0);
        if (positive && mask)
            out[row] = sum_of(size, [&](int64_t i) { return kept[i] ? above[i] ? x[i] : -x[i] : 0.0f; });
        else if (positive)
            out[row] = sum_of(size, [&](int64_t i) { return above[i] ? x[i] : -x[i]; });
        else if (mask)
            out[row] = sum_of(size, [&](int64_t i) { return kept[i] ? std::fabs(x[i]) : 0.0f; });
        else
            out[row] = sum_of(size, [&](int64_t i) { return std::fabs(x[i]); });
    }
}

// out[r, i] = alpha[r] * g where abs(w) is below the bound, else 0; and, if there are shares, +share[r] or -share[r] by
// positive, over the mask, if given.
void mpt_clipped(const float *g, const float *w, float bound, const float *alphas, const uint8_t *positive, const uint8_t *mask,
                 const float *shares, int64_t rows, int64_t size, float *out) {
#pragma omp parallel for collapse(2) schedule(static) if (rows * size > CHUNK)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t start = 0; start < size; start += CHUNK) {
            const int64_t begin = row * size + start, end = row * size + std::min(start + CHUNK, size);
            const float alpha = alphas[row];
#pragma GCC ivdep
            for (int64_t i = begin; i < end; i++) out[i] = std::fabs(w[i]) >= bound ? 0.0f : alpha * g[i];
            if (shares) {
                const float share = shares[row];
#pragma GCC ivdep
                for (int64_t i = begin; i < end; i++) {
                    const float signed_share = positive[i] ? share : -share;
                    out[i] += mask && !mask[i] ? 0.0f : signed_share;
                }
            }
        }
    }
}

// alpha[r] g 2 b s (1 - s) (2 - y (2 s - 1)) of s, the sigmoid of y = -b abs(w): through the slope of the sign-swish.
void mpt_swish(const float *g, const float *w, const float *s, const float *alphas, float b, int64_t rows, int64_t size,
               float *out) {
#pragma omp parallel for collapse(2) schedule(static) if (rows * size > CHUNK)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t start = 0; start < size; start += CHUNK) {
            const int64_t begin = row * size + start, end = row * size + std::min(start + CHUNK, size);
            const float alpha = alphas[row];
#pragma GCC ivdep
            for (int64_t i = begin; i < end; i++) {
                const float y = std::max(-b * std::fabs(w[i]), -80.0f);
                out[i] = s[i] * (1 - s[i]) * (2 - y * (2 * s[i] - 1)) * (2 * b) * g[i] * alpha;
            }
        }
    }
}

// Of each row, over the mask if given, with d = alpha[r] - abs(w): the sum of abs(d) or of its square, and that of its slope.
void mpt_distances(const float *w, const float *alphas, const uint8_t *mask, int32_t squared, int64_t rows, int64_t size,
                   float *sums, float *slopes) {
#pragma omp parallel for schedule(static) if (rows * size > CHUNK)
    for (int64_t row = 0; row < rows; row++) {
        const float *x = w + row * size, alpha = alphas[row];
        const uint8_t *kept = mask + (mask ? row * size : 0);
        const auto of = [&](auto value) {
            const auto distance = [&](int64_t i) { return value(alpha - std::fabs(x[i])); };
            if (mask) return sum_of(size, [&](int64_t i) { return kept[i] ? distance(i) : 0.0f; });
            return sum_of(size, distance);
        };
        if (squared) {
            sums[row] = of([](float d) { return d * d; });
            slopes[row] = of([](float d) { return 2 * d; });
        } else {
            sums[row] = of([](float d) { return std::fabs(d); });
            slopes[row] = of([](float d) { return (float)((d > 0) - (d < 0)); });
        }
    }
}

// What w gets of that sum's gradient, *factor: -slope * sign(w), sign(0) = 0; 0 where the mask, if given, is.
void mpt_distance_gradient(const float *w, const float *alphas, const uint8_t *mask, int32_t squared, const float *factor,
                           int64_t rows, int64_t size, float *out) {
#pragma omp parallel for collapse(2) schedule(static) if (rows * size > CHUNK)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t start = 0; start < size; start += CHUNK) {
            const int64_t begin = row * size + start, end = row * size + std::min(start + CHUNK, size);
            const float alpha = alphas[row], by = -*factor;
#pragma GCC ivdep
            for (int64_t i = begin; i < end; i++) {
                const float d = alpha - std::fabs(w[i]), slope = squared ? 2 * d : (float)((d > 0) - (d < 0));
                out[i] = slope * (float)((w[i] > 0) - (w[i] < 0)) * by;
            }
            if (mask)
                for (int64_t i = begin; i < end; i++) out[i] = mask[i] ? out[i] : 0.0f;
        }
    }
}

// out[i] = g[i] * magnitude * b * sign(score): magnitude is abs(w[i]), or alpha where w is null; sign(0) = +1.
void mpt_score_gradient(const float *g, const float *w, float alpha, const uint8_t *positive, const float *scores,
                        int64_t size, float *out) {
#pragma omp parallel for schedule(static) if (size > CHUNK)
    for (int64_t begin = 0; begin < size; begin += CHUNK) {
        const int64_t end = std::min(begin + CHUNK, size);
        for (int64_t i = begin; i < end; i++) {
            const float product = g[i] * (w ? std::fabs(w[i]) : alpha);
            out[i] = (positive[i] != 0) == (scores[i] >= 0) ? product : -product;
        }
    }
}

// The gradient of a row's weights w from g, that of gate' (y), through y = slope * (w - mean) / deviation, with gate = the
// sigmoid of y: factor * (x - sum(x) / size - y * sum(x y) / share), where x = g * (1 - gate) * gate. `gate` is written over.
void mpt_through_standardised(const float *g, const float *y, float *gate, const float *factors, float share, int64_t rows,
                              int64_t size, float *out) {
#pragma omp parallel for schedule(static) if (rows * size > CHUNK)
    for (int64_t row = 0; row < rows; row++) {
        const float *of_w = g + row * size, *at = y + row * size, factor = factors[row];
        float *x = gate + row * size, *to = out + row * size;
#pragma GCC ivdep
        for (int64_t i = 0; i < size; i++) x[i] = of_w[i] * (1 - x[i]) * x[i];
        const float along = sum_of(size, [&](int64_t i) { return x[i] * at[i]; }) / share;
        const float shift = sum_of(size, [&](int64_t i) { return x[i]; }) / (float)size;
#pragma GCC ivdep
        for (int64_t i = 0; i < size; i++) to[i] = (x[i] - shift - at[i] * along) * factor;
    }
}

}  // extern "C"
