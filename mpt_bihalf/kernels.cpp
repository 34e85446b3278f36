// The few loops that torch has no single pass for. Built by setup.py where there is a compiler; kernels.py calls them and
// does the same in NumPy and torch, with the same bits.
//
// All tensors are contiguous float32 or bytes. A cut is a place in the order by (value, index): what ranks at or above it
// is chosen, so ties need no care afterwards.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <functional>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t BLOCK = 256;            // elements looked at together
constexpr int64_t CHUNK = 64 * BLOCK;     // elements a thread takes at once
constexpr int64_t HINT = 3;               // numbers that say where to look in a row
constexpr int64_t SUMS = 128;             // sums of a row that are kept side by side
constexpr int64_t WORDS = 1024;           // words of 32 bits that a fingerprint adds up before it mixes them
constexpr float INFINITE = std::numeric_limits<float>::infinity();

struct Cut {
    float value;
    int64_t index;
};

struct Candidate {
    float value;
    int64_t index;
    bool operator>(const Candidate &other) const {
        return value > other.value || (value == other.value && index > other.index);
    }
};

template <bool Absolute>
inline float key(float x) {
    return Absolute ? std::fabs(x) : x;
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
};
inline uint32_t members(const uint8_t *among) {
    const __m128i bytes = _mm_loadu_si128((const __m128i *)among);
    return _mm_test_epi8_mask(bytes, bytes);
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
};
inline uint32_t members(const uint8_t *among) {
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)among);
    return 0xff & ~_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_setzero_si128()));
}
#else
constexpr int64_t LANES = 1;
template <bool Absolute>
struct Lanes {
    float value;
    explicit Lanes(const float *x) : value(key<Absolute>(*x)) {}
    uint32_t above(float bound) const { return value > bound; }
    uint32_t at_least(float bound) const { return value >= bound; }
};
inline uint32_t members(const uint8_t *among) { return *among; }
#endif

// Counts what lies above the bracket [low, high] and gathers what lies in it.
template <bool Absolute, bool Among>
int64_t scan(const float *x, const uint8_t *among, int64_t begin, int64_t end, float low, float high,
             std::vector<Candidate> &inside) {
    int64_t above = 0, i = begin;
    for (; i + LANES <= end; i += LANES) {
        const Lanes<Absolute> lanes(x + i);
        const uint32_t counted = Among ? members(among + i) : ~0u;
        const uint32_t higher = lanes.above(high);
        above += __builtin_popcount(higher & counted);
        uint32_t within = lanes.at_least(low) & ~higher & counted;
        for (; within; within &= within - 1) {
            const int64_t place = i + __builtin_ctz(within);
            inside.push_back({key<Absolute>(x[place]), place});
        }
    }
    for (; i < end; i++) {
        const float value = key<Absolute>(x[i]);
        if (Among && !among[i]) continue;
        above += value > high;
        if (value >= low && !(value > high)) inside.push_back({value, i});
    }
    return above;
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

// The cut with exactly `count` (of the `total` that count) at or above it. `hint` is where to look first: a middle, a half
// width, and how far the middle lies beyond the last cut, as cuts drift (NaN: nowhere). It is left as what to try next time,
// and never changes the answer.
template <bool Absolute, bool Among, class Scan>
Cut find_cut(const float *x, const uint8_t *among, int64_t size, int64_t count, int64_t total, float *hint, Scan scan_all) {
    if (count <= 0) return {INFINITE, size};
    if (!Among && count >= total) return {-INFINITE, 0};
    std::vector<Candidate> inside;
    const float expected = hint[0], last = hint[0] - hint[2];
    for (int attempt = expected == expected ? 0 : 1; attempt < 3; attempt++) {
        float low = -INFINITE, high = INFINITE;
        if (attempt == 0) {
            low = hint[0] - hint[1], high = hint[0] + hint[1];
        } else if (attempt == 1) {
            sample_bracket<Absolute, Among>(x, among, size, count, total, &low, &high);
        }
        inside.clear();
        const int64_t above = scan_all(low, high, inside);
        const int64_t rank = count - above - 1;  // of the cut among the candidates, from the top
        const int64_t found = inside.size();
        if (rank < 0 || rank >= found) continue;
        std::nth_element(inside.begin(), inside.begin() + rank, inside.end(), std::greater<Candidate>());
        const Candidate at = inside[rank];
        const float missed = std::fabs(at.value - expected), moved = at.value - last;
        if (attempt == 0) {
            hint[1] = std::max(4 * missed, hint[1] * std::min(1.0f, (size / 256 + 16) / (float)found));
        } else {
            hint[1] = missed == missed ? 4 * missed : (high - low) / 8;
        }
        if (!(hint[1] < INFINITE)) hint[1] = std::fabs(at.value) / 16;
        hint[2] = moved == moved ? (hint[2] + moved) / 2 : 0;
        hint[0] = at.value + hint[2];
        return {at.value, at.index};
    }
    return {INFINITE, size};  // NaN among the values: there is no order to cut
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

// out[i] = whether x[i] ranks at or above the cut: before the cut's place equal values do not, from there on they do.
template <bool Absolute>
void choose(const float *x, int64_t begin, int64_t end, Cut cut, uint8_t *out) {
    const int64_t turn = std::min(std::max(cut.index, begin), end);
    for (int64_t i = begin; i < turn; i++) out[i] = key<Absolute>(x[i]) > cut.value;
    for (int64_t i = turn; i < end; i++) out[i] = key<Absolute>(x[i]) >= cut.value;
}

template <bool Absolute, bool Among>
void top_of_rows(const float *x, const uint8_t *among, int64_t rows, int64_t size, const int64_t *counts,
                 const int64_t *totals, float *hints, uint8_t *out) {
    if (rows >= 8 || size < 4 * CHUNK) {
#pragma omp parallel for schedule(static) if (rows * size > CHUNK)
        for (int64_t row = 0; row < rows; row++) {
            const float *values = x + row * size;
            const uint8_t *members = Among ? among + row * size : nullptr;
            const Cut cut = find_cut<Absolute, Among>(
                values, members, size, counts[row], Among ? totals[row] : size, hints + HINT * row,
                [&](float low, float high, std::vector<Candidate> &inside) {
                    return scan<Absolute, Among>(values, members, 0, size, low, high, inside);
                });
            choose<Absolute>(values, 0, size, cut, out + row * size);
        }
        return;
    }
    for (int64_t row = 0; row < rows; row++) {
        const float *values = x + row * size;
        const uint8_t *members = Among ? among + row * size : nullptr;
        const Cut cut = find_cut<Absolute, Among>(
            values, members, size, counts[row], Among ? totals[row] : size, hints + HINT * row,
            [&](float low, float high, std::vector<Candidate> &inside) {
                int64_t above = 0;
#pragma omp parallel reduction(+ : above)
                {
                    std::vector<Candidate> mine;
#pragma omp for schedule(static)
                    for (int64_t begin = 0; begin < size; begin += CHUNK)
                        above += scan<Absolute, Among>(values, members, begin, std::min(begin + CHUNK, size), low, high, mine);
#pragma omp critical
                    inside.insert(inside.end(), mine.begin(), mine.end());
                }
                return above;
            });
#pragma omp parallel for schedule(static)
        for (int64_t begin = 0; begin < size; begin += CHUNK)
            choose<Absolute>(values, begin, std::min(begin + CHUNK, size), cut, out + row * size);
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

// out[r, i] = 1 where x[r, i] (its magnitude, with `absolute`) is among the counts[r] largest of its row. With `among` only
// its members count, totals[r] of them in the row; `out` says of every element whether it ranks at or above the lowest
// chosen one.
void mpt_largest(const float *x, int absolute, const uint8_t *among, int64_t rows, int64_t size, const int64_t *counts,
                 const int64_t *totals, float *hints, uint8_t *out) {
    auto run = absolute ? (among ? top_of_rows<true, true> : top_of_rows<true, false>)
                        : (among ? top_of_rows<false, true> : top_of_rows<false, false>);
    run(x, among, rows, size, counts, totals, hints, out);
}

// totals[r] = how many bytes of row r are 1.
void mpt_count(const uint8_t *mask, int64_t rows, int64_t size, int64_t *totals) {
#pragma omp parallel for schedule(static) if (rows * size > CHUNK)
    for (int64_t row = 0; row < rows; row++) {
        int64_t total = 0;
        for (int64_t start = 0; start < size; start += BLOCK / 2) {
            const int64_t stop = std::min(start + BLOCK / 2, size);
            uint8_t part = 0;
            for (int64_t i = start; i < stop; i++) part += mask[row * size + i];
            total += part;
        }
        totals[row] = total;
    }
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
