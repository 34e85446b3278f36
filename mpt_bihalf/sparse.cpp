// Convolutions and linear layers whose weights are -alpha, 0, +alpha with one alpha a filter: they add and subtract what
// the kept weights name and skip the rest. Built with kernels.cpp where the processor has AVX2 and fused multiply-add;
// sparse.py calls it.
//
// The images of a batch are the lanes of a vector. Tensors are float32, [channels, height, width, images] in memory: the
// stride between images is 1, the others are told. Each sum has one order, whatever the vectors, blocks and threads:
//
// - forward, a sum over input channels and taps, one weight after the other, from 0; then times alpha, plus the bias;
// - backward to the input, a sum over outputs and taps likewise, of the gradient times alpha;
// - the gradient of a convolution's weight, for each 32 images: for each 4 x 4 pixels of y by row and column, for each 16
//   images: a sum from 0 over pixels and images by fused multiply-add, which is added to the sum of the 32; these are
//   added up from 0. 3x3 weights at stride 1, of more than 7 channels, have such a sum for each of the 16 points of
//   F(3x3, 2x2), over 2 x 2 tiles in the place of pixels;
// - the gradient of a linear layer's weight, a sum over images by fused multiply-add;
// - the gradient of a bias, 16 sums of the images n with n mod 16 = j, by 16 images, row and column, added by halves.

#if defined(__AVX2__) && defined(__FMA__)

#include <immintrin.h>
#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace {

constexpr uint16_t NOWHERE = 0xffff;  // the place of a weight that a pass does not take

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
struct Vector {
    __m512 values;
    static Vector zero() { return {_mm512_setzero_ps()}; }
    static Vector all(float x) { return {_mm512_set1_ps(x)}; }
    static Vector load(const float *x) { return {_mm512_loadu_ps(x)}; }
    static Vector load(const float *x, int64_t count) {
        return {_mm512_maskz_loadu_ps(count >= LANES ? 0xffff : (1u << count) - 1, x)};
    }
    void store(float *x) const { _mm512_storeu_ps(x, values); }
    void store(float *x, int64_t count) const {
        _mm512_mask_storeu_ps(x, count >= LANES ? 0xffff : (1u << count) - 1, values);
    }
    Vector operator*(Vector y) const { return {_mm512_mul_ps(values, y.values)}; }
    Vector operator+(Vector y) const { return {_mm512_add_ps(values, y.values)}; }
    Vector operator-(Vector y) const { return {_mm512_sub_ps(values, y.values)}; }
    Vector plus_product(Vector x, Vector y) const { return {_mm512_fmadd_ps(x.values, y.values, values)}; }
};
// Of the next LANES weights those that are kept and have a place: it, plus one where the weight is negative, to `place`,
// and the weight to `value`, if given. Moves both on; the rest of a vector behind them is written over.
inline void take(const float *w, const uint16_t *places, int64_t count, uint16_t *&place, float *&value) {
    const __m512 x = Vector::load(w, count).values;
    const __m512i here = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)places));
    const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ) &
                           _mm512_cmpneq_epi32_mask(here, _mm512_set1_epi32(NOWHERE));
    const __m512i named = _mm512_or_si512(here, _mm512_srli_epi32(_mm512_castps_si512(x), 31));
    _mm256_storeu_si256((__m256i *)place, _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(kept, named)));
    place += __builtin_popcount(kept);
    if (!value) return;
    _mm512_storeu_ps(value, _mm512_maskz_compress_ps(kept, x));
    value += __builtin_popcount(kept);
}
#else
constexpr int64_t LANES = 8;
inline __m256i first(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)std::min(count, LANES)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
struct Vector {
    __m256 values;
    static Vector zero() { return {_mm256_setzero_ps()}; }
    static Vector all(float x) { return {_mm256_set1_ps(x)}; }
    static Vector load(const float *x) { return {_mm256_loadu_ps(x)}; }
    static Vector load(const float *x, int64_t count) {
        return {count >= LANES ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, first(count))};
    }
    void store(float *x) const { _mm256_storeu_ps(x, values); }
    void store(float *x, int64_t count) const {
        if (count >= LANES) store(x);
        else _mm256_maskstore_ps(x, first(count), values);
    }
    Vector operator*(Vector y) const { return {_mm256_mul_ps(values, y.values)}; }
    Vector operator+(Vector y) const { return {_mm256_add_ps(values, y.values)}; }
    Vector operator-(Vector y) const { return {_mm256_sub_ps(values, y.values)}; }
    Vector plus_product(Vector x, Vector y) const { return {_mm256_fmadd_ps(x.values, y.values, values)}; }
};
inline void take(const float *w, const uint16_t *places, int64_t count, uint16_t *&place, float *&value) {
    const __m256 x = Vector::load(w, count).values;
    uint32_t kept = _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NEQ_UQ));
    const uint32_t negative = _mm256_movemask_ps(x);
    for (; kept; kept &= kept - 1) {
        const int bit = __builtin_ctz(kept);
        if (places[bit] == NOWHERE) continue;
        *place++ = places[bit] | (uint16_t)(negative >> bit & 1);
        if (value) *value++ = w[bit];
    }
}
#endif

constexpr int64_t SIDE = 4;               // a tile is SIDE x SIDE pixels of LANES images: the sums held in registers
constexpr int64_t GROUPS = 4;               // of LANES images gathered together at most, as they lie side by side
constexpr int64_t PARTIALS = 16;          // sums of a bias's gradient that are kept side by side

// Bytes that what a list names may take, so that it stays in the first cache.
int64_t first_cache() {
    static const int64_t size = [] {
        const long told = sysconf(_SC_LEVEL1_DCACHE_SIZE);
        return (int64_t)(told >= 16384 && told <= 1 << 20 ? told : 32768) * 13 / 16;
    }();
    return size;
}

struct Free {
    void operator()(float *memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<float[], Free>;

Memory memory(int64_t floats) {
    void *found = std::aligned_alloc(64, (std::max<int64_t>(floats, 1) * 4 + 63) / 64 * 64);
    if (!found) throw std::bad_alloc();
    return Memory((float *)found);
}

// A tensor [channels, height, width, images] in memory, images side by side.
struct Images {
    float *data;
    int64_t channels, height, width, of_channel, of_row, of_column;  // sizes, strides
    float *at(int64_t c, int64_t y, int64_t x) const { return data + c * of_channel + y * of_row + x * of_column; }
};

// One of the ways in which a list is walked over tiles. Where an output is at (u, v) of the grid, the buffer's first pixel
// is the input's (top + u * advance, left + v * advance), its pixels are `sample` apart, a row of it holds `pitch`.
struct Pass {
    int64_t height, width;            // of the grid of outputs
    int64_t top, left, advance, sample, pitch;
    int64_t out_top, out_left, out_step;
    int tap[9];                       // a tap's place in the buffer, or -1
};

// For a block of input channels: of each pass and output, what its kept weights name, in order: a place in the buffer, in
// vectors, times two, plus one where the weight is negative.
// Of weights of any value, real-valued layers', `values` has them; else the places alone tell.
struct Lists {
    std::vector<uint32_t> starts;
    std::unique_ptr<uint16_t[]> places;
    std::unique_ptr<float[]> values;
};

// The bits of abs(x): an integer that is the greater the greater abs(x) is, NaN above infinity.
inline uint32_t magnitude(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffff;
}

// The alpha of each filter of w [filters, size]; false where its weights are not -alpha, 0, +alpha. Magnitudes are compared
// as the integers that their bits are, which compilers can do in vectors: a NaN is the highest, and is refused.
bool alphas(const float *w, int64_t filters, int64_t size, float *alpha) {
    bool all = true;
#pragma omp parallel for schedule(static) reduction(&& : all)
    for (int64_t f = 0; f < filters; f++) {
        const float *row = w + f * size;
        uint32_t most = 0, others = 0;
        for (int64_t i = 0; i < size; i++) most = std::max(most, magnitude(row[i]));
        for (int64_t i = 0; i < size; i++) others |= magnitude(row[i]) != 0 && magnitude(row[i]) != most;
        std::memcpy(alpha + f, &most, sizeof most);
        all = all && !others && most <= 0x7f800000;
    }
    return all;
}

// Lists of w [rows, channels, taps]: one for each `block` channels, which take `plane` vectors each in the buffer, with the
// passes one after the other.
std::vector<Lists> listed(const float *w, int64_t rows, int64_t channels, int64_t taps, int64_t block,
                          const std::vector<Pass> &passes, int64_t plane, bool valued) {
    std::vector<Lists> blocks((channels + block - 1) / block);
    const int64_t of_pass = block * taps + LANES;
    std::vector<uint16_t> places(passes.size() * of_pass);
    for (size_t p = 0; p < passes.size(); p++)
        for (int64_t i = 0; i < block * taps; i++) {
            const int tap = passes[p].tap[i % taps];
            places[p * of_pass + i] = tap < 0 ? NOWHERE : (uint16_t)(2 * (i / taps * plane + tap));
        }
#pragma omp parallel
    {
        const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num(), count = (int64_t)blocks.size();
        const int64_t begin = thread * count / threads, end = (thread + 1) * count / threads;
        std::vector<uint16_t *> place;
        std::vector<float *> value;
        for (int64_t b = begin; b < end; b++) {
            Lists &lists = blocks[b];
            lists.starts.assign(1, 0);
            lists.places.reset(new uint16_t[rows * block * taps + LANES]);
            if (valued) lists.values.reset(new float[rows * block * taps + LANES]);
            place.push_back(lists.places.get());
            value.push_back(lists.values.get());
        }
        for (size_t p = 0; p < passes.size(); p++)
            for (int64_t row = 0; row < rows; row++)  // a row's blocks lie side by side
                for (int64_t b = begin; b < end; b++) {
                    const int64_t first = b * block * taps, size = std::min(channels * taps - first, block * taps);
                    const float *from = w + row * channels * taps + first;
                    for (int64_t i = 0; i < size; i += LANES)
                        take(from + i, &places[p * of_pass + i], size - i, place[b - begin], value[b - begin]);
                    blocks[b].starts.push_back((uint32_t)(place[b - begin] - blocks[b].places.get()));
                }
    }
    return blocks;
}

// LANES vectors turned into one of each of their lanes, `of_row` apart.
inline void store_turned(Vector *rows, float *to, int64_t of_row) {
#if defined(__AVX512F__)
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(rows[i].values, rows[i + 1].values);
        a[i + 1] = _mm512_unpackhi_ps(rows[i].values, rows[i + 1].values);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            const __m512d low = _mm512_castps_pd(a[i + j]), high = _mm512_castps_pd(a[i + j + 2]);
            b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            a[i + j] = _mm512_shuffle_f32x4(b[i + j], b[i + j + 4], 0x88);
            a[i + j + 4] = _mm512_shuffle_f32x4(b[i + j], b[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        _mm512_storeu_ps(to + j * of_row, _mm512_shuffle_f32x4(a[j], a[j + 8], 0x88));
        _mm512_storeu_ps(to + (j + 8) * of_row, _mm512_shuffle_f32x4(a[j], a[j + 8], 0xdd));
    }
#else
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(rows[i].values, rows[i + 1].values);
        a[i + 1] = _mm256_unpackhi_ps(rows[i].values, rows[i + 1].values);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            const __m256d low = _mm256_castps_pd(a[i + j]), high = _mm256_castps_pd(a[i + j + 2]);
            b[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));
            b[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
        }
    for (int j = 0; j < 4; j++) {
        _mm256_storeu_ps(to + j * of_row, _mm256_permute2f128_ps(b[j], b[j + 4], 0x20));
        _mm256_storeu_ps(to + (j + 4) * of_row, _mm256_permute2f128_ps(b[j], b[j + 4], 0x31));
    }
#endif
}

// w [filters, size, taps] as [size, filters, taps].
Memory turned(const float *w, int64_t filters, int64_t size, int64_t taps) {
    Memory to = memory(filters * size * taps);
#pragma omp parallel for schedule(static)
    for (int64_t c0 = 0; c0 < size; c0 += LANES)
        for (int64_t f0 = 0; f0 < filters; f0 += LANES) {
            const int64_t c1 = std::min(size, c0 + LANES), f1 = std::min(filters, f0 + LANES);
            if (taps == 1 && c1 - c0 == LANES && f1 - f0 == LANES) {
                Vector rows[LANES];
                for (int64_t i = 0; i < LANES; i++) rows[i] = Vector::load(w + (f0 + i) * size + c0);
                store_turned(rows, to.get() + c0 * filters + f0, filters);
                continue;
            }
            for (int64_t c = c0; c < c1; c++)
                for (int64_t f = f0; f < f1; f++)
                    for (int64_t t = 0; t < taps; t++) to[(c * filters + f) * taps + t] = w[(f * size + c) * taps + t];
        }
    return to;
}

// Add what the lists of `rows` outputs name in the buffer to their sums, ROWS x COLUMNS vectors each.
template <int ROWS, int COLUMNS, int PITCH, int STEP, bool Valued>
void add(const Lists &lists, int64_t first, int64_t rows, const float *buffer, float *sums, bool begin) {
    constexpr int COUNT = ROWS * COLUMNS;
    static const float SIGNS[2] = {1.0f, -1.0f};
    const uint16_t *places = lists.places.get();
    const float *values = lists.values.get();
    const uint32_t *starts = lists.starts.data() + first;
    for (int64_t row = 0; row < rows; row++, sums += COUNT * LANES) {
        Vector sum[COUNT];
        if (begin) {
#pragma GCC unroll 16
            for (int i = 0; i < COUNT; i++) sum[i] = Vector::zero();
        } else {
#pragma GCC unroll 16
            for (int i = 0; i < COUNT; i++) sum[i] = Vector::load(sums + i * LANES);
        }
        const uint16_t *end = places + starts[row + 1];
        for (const uint16_t *place = places + starts[row]; place < end; place++) {
            const float *from = buffer + (*place >> 1) * LANES;
            const Vector weight = Vector::all(Valued ? values[place - places] : SIGNS[*place & 1]);
#pragma GCC unroll 16
            for (int i = 0; i < COUNT; i++)
                sum[i] = sum[i].plus_product(Vector::load(from + (i / COLUMNS * PITCH + i % COLUMNS) * STEP * LANES), weight);
        }
#pragma GCC unroll 16
        for (int i = 0; i < COUNT; i++) sum[i].store(sums + i * LANES);
    }
}

using Add = void (*)(const Lists &, int64_t, int64_t, const float *, float *, bool);

template <int PITCH, int STEP>
Add tiles(bool valued) {
    if (valued) return add<SIDE, SIDE, PITCH, STEP, true>;
    return add<SIDE, SIDE, PITCH, STEP, false>;
}

// One tile's share of the input into a buffer for each of `groups` groups of LANES images: `pitch` x `pitch` pixels of
// each channel, zero outside.
void gather(const Images &from, int64_t c0, int64_t c1, int64_t top, int64_t left, const Pass &pass, int64_t n,
            int64_t images, int64_t groups, const float *factors, float *buffer, int64_t of_group) {
    const int64_t pitch = pass.pitch;
    for (int64_t c = c0; c < c1; c++) {
        const Vector factor = Vector::all(factors ? factors[c] : 1.0f);
        for (int64_t i = 0; i < pitch; i++) {
            const int64_t y = top + i * pass.sample;
            const bool inside = y >= 0 && y < from.height;
            const float *row = from.at(c, inside ? y : 0, 0) + n;
            for (int64_t j = 0; j < pitch; j++, buffer += LANES) {
                const int64_t x = left + j * pass.sample;
                if (!inside || x < 0 || x >= from.width) {
                    for (int64_t g = 0; g < groups; g++) Vector::zero().store(buffer + g * of_group);
                    continue;
                }
                // Strides are too long for the processor to see what comes.
                const float *pixel = row + x * from.of_column;
                for (int64_t g = 0; g < groups; g++) {
                    __builtin_prefetch(pixel + g * LANES + 2 * from.of_channel);
                    const Vector x = Vector::load(pixel + g * LANES, images - n - g * LANES);
                    (x * factor).store(buffer + g * of_group);
                }
            }
        }
    }
}

void walk(const Images &from, const Images &to, int64_t images, const std::vector<Pass> &passes,
          const std::vector<Lists> &blocks, int64_t block, Add add, const float *factors, const float *alpha,
          const float *bias) {
    const int64_t rows = to.channels, tiles = (passes[0].width + SIDE - 1) / SIDE * ((passes[0].height + SIDE - 1) / SIDE);
    int64_t abreast = GROUPS;  // as far as there is something to do for every thread
    const auto bundles = [&] { return (images + abreast * LANES - 1) / (abreast * LANES); };
    while (abreast > 1 && tiles * bundles() < 2 * omp_get_max_threads()) abreast /= 2;
    const int64_t plane = passes[0].pitch * passes[0].pitch, together = std::min<int64_t>(rows, 256);
    const int64_t of_buffer = block * plane * LANES, of_sums = together * SIDE * SIDE * LANES;
#pragma omp parallel
    {
        const Memory buffers = memory(abreast * of_buffer), sums = memory(abreast * of_sums);
        for (size_t p = 0; p < passes.size(); p++) {
            const Pass &pass = passes[p];
            const int64_t across = (pass.width + SIDE - 1) / SIDE, down = (pass.height + SIDE - 1) / SIDE;
#pragma omp for schedule(static) nowait
            for (int64_t item = 0; item < across * down * bundles(); item++) {
                const int64_t n = item % bundles() * abreast * LANES, tile = item / bundles();
                const int64_t u = tile / across * SIDE, v = tile % across * SIDE;
                const int64_t here = std::min(abreast, (images - n + LANES - 1) / LANES);
                for (int64_t r0 = 0; r0 < rows; r0 += together) {
                    const int64_t r1 = std::min(rows, r0 + together);
                    for (size_t b = 0; b < blocks.size(); b++) {
                        const int64_t c0 = b * block, c1 = std::min(from.channels, c0 + block);
                        gather(from, c0, c1, pass.top + u * pass.advance, pass.left + v * pass.advance, pass, n, images,
                               here, factors, buffers.get(), of_buffer);
                        for (int64_t g = 0; g < here; g++)
                            add(blocks[b], p * rows + r0, r1 - r0, buffers.get() + g * of_buffer,
                                sums.get() + g * of_sums, b == 0);
                    }
                    const int64_t high = std::min(SIDE, pass.height - u), wide = std::min(SIDE, pass.width - v);
                    for (int64_t r = r0; r < r1; r++) {
                        const Vector factor = Vector::all(alpha ? alpha[r] : 1.0f);
                        const float *sum = sums.get() + (r - r0) * SIDE * SIDE * LANES;
                        for (int64_t i = 0; i < high; i++)
                            for (int64_t j = 0; j < wide; j++) {
                                float *place = to.at(r, (u + i) * pass.out_step + pass.out_top,
                                                     (v + j) * pass.out_step + pass.out_left) + n;
                                for (int64_t g = 0; g < here; g++) {
                                    Vector y = Vector::load(sum + (i * SIDE + j) * LANES + g * of_sums) * factor;
                                    if (bias) y = y + Vector::all(bias[r]);
                                    y.store(place + g * LANES, images - n - g * LANES);
                                }
                            }
                    }
                }
            }
        }
    }
}

// A linear layer: VECTORS vectors of images are a tile. from, to: [channels, images], rows `of_channel` apart.
template <int VECTORS>
void walk_linear(const Images &from, const Images &to, int64_t images, const std::vector<Lists> &blocks, int64_t block,
                 const float *factors, const float *alpha, const float *bias) {
    constexpr int64_t WIDE = VECTORS * LANES;
    const int64_t rows = to.channels, tiles = (images + WIDE - 1) / WIDE, threads = omp_get_max_threads();
    const int64_t together = std::max<int64_t>(1, std::min((rows * tiles + threads - 1) / threads, 65536 / WIDE));
    const int64_t chunks = (rows + together - 1) / together;
#pragma omp parallel
    {
        const Memory buffer = memory(block * WIDE), sums = memory(together * WIDE);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < tiles * chunks; item++) {
            const int64_t n0 = item % tiles * WIDE, r0 = item / tiles * together, r1 = std::min(rows, r0 + together);
            for (size_t b = 0; b < blocks.size(); b++) {
                const int64_t c0 = b * block, c1 = std::min(from.channels, c0 + block);
                for (int64_t c = c0; c < c1; c++)
                    for (int64_t v = 0; v < VECTORS; v++) {
                        const int64_t n = n0 + v * LANES;
                        const Vector x = n < images ? Vector::load(from.at(c, 0, 0) + n, images - n) : Vector::zero();
                        (x * Vector::all(factors ? factors[c] : 1.0f)).store(buffer.get() + (c - c0) * WIDE + v * LANES);
                    }
                add<1, VECTORS, VECTORS, 1, false>(blocks[b], r0, r1 - r0, buffer.get(), sums.get(), b == 0);
            }
            for (int64_t r = r0; r < r1; r++)
                for (int64_t n = n0; n < std::min(images, n0 + WIDE); n += LANES) {
                    Vector y = Vector::load(sums.get() + (r - r0) * WIDE + n - n0) * Vector::all(alpha ? alpha[r] : 1.0f);
                    if (bias) y = y + Vector::all(bias[r]);
                    y.store(to.at(r, 0, 0) + n, images - n);
                }
        }
    }
}

// Of w [rows, size].
void linear(const float *w, const Images &from, const Images &to, int64_t images, const float *factors, const float *alpha,
            const float *bias) {
    const int64_t vectors = images > 8 * LANES ? 16 : images > 4 * LANES ? 8 : images > LANES ? 4 : 1;
    const int64_t block = std::max<int64_t>(1, std::min(from.channels, first_cache() / (vectors * LANES * 4)));
    const std::vector<Lists> blocks = listed(w, to.channels, from.channels, 1, block, std::vector<Pass>(1), vectors, false);
    const auto how = vectors == 16 ? walk_linear<16> : vectors == 8 ? walk_linear<8> : vectors == 4 ? walk_linear<4>
                                                                                                   : walk_linear<1>;
    how(from, to, images, blocks, block, factors, alpha, bias);
}

// The gradient of the weights of a convolution, a matrix product for each point: 3x3 weights at stride 1 by the minimal
// algorithm F(3x3, 2x2) (Winograd), 16 points where taps and pixels would make 36 products; others tap by tap.
constexpr int64_t IMAGES = 16, PART = 32;  // images of a window; images after which sums begin anew
constexpr int64_t ABREAST = 64;            // filters, and channels, worked out together at most
constexpr int ROWS = LANES == 16 ? 4 : 6;  // filters of a register tile; it has up to VECTORS vectors of channels
constexpr int VECTORS = LANES == 16 ? 4 : 2;

// Add to sums [ROWS, width] the products of g, ROWS filters `of_filter` apart, with x, V vectors of channels: IMAGES of
// each of `runs` places, where x lies at an offset in rows of `width`, and g one run after the other.
template <int V>
void multiply(const float *x, const int64_t *offsets, int64_t runs, const float *g, int64_t of_filter, int64_t width,
              float *sums) {
    Vector sum[ROWS][V];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sum[r][v] = Vector::zero();
    for (int64_t run = 0; run < runs; run++) {
        const float *from = x + offsets[run];
        for (int64_t i = 0; i < IMAGES; i++, from += width, g++) {
            Vector inputs[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) inputs[v] = Vector::load(from + v * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                Vector of_y = Vector::all(g[r * of_filter]);
                asm("" : "+v"(of_y.values));  // loaded once, not with each product
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) sum[r][v] = sum[r][v].plus_product(of_y, inputs[v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            float *to = sums + r * width + v * LANES;
            (Vector::load(to) + sum[r][v]).store(to);
        }
}

// Of F(3, 2): four inputs, or two factors, at its points 0, 1, -1 and infinity; products there become three outputs.
inline void of_inputs(const Vector *x, int64_t step, Vector *to, int64_t to_step) {
    to[0] = x[0] - x[2 * step];
    to[to_step] = x[step] + x[2 * step];
    to[2 * to_step] = x[2 * step] - x[step];
    to[3 * to_step] = x[3 * step] - x[step];
}
inline void of_factors(const Vector *g, int64_t step, Vector *to, int64_t to_step) {
    to[0] = g[0];
    to[to_step] = g[0] + g[step];
    to[2 * to_step] = g[0] - g[step];
    to[3 * to_step] = g[step];
}
inline void of_products(const float *m, int64_t step, float *to, int64_t to_step) {
    to[0] = m[0] + 0.5f * (m[step] + m[2 * step]);
    to[to_step] = 0.5f * (m[step] - m[2 * step]);
    to[2 * to_step] = 0.5f * (m[step] + m[2 * step]) + m[3 * step];
}

// A convolution's weight gradient, by blocks of filters and channels and by parts of the batch.
struct WeightGradient {
    Images inputs, outputs;
    int64_t images, kernel, step, top, left;
    // Few channels: each tap of each is a channel of 1x1 weights.
    bool spread() const { return kernel == 3 && inputs.channels * 9 <= ABREAST; }
    bool minimal() const { return kernel == 3 && step == 1 && !spread(); }
    bool pointwise() const { return kernel == 1 || spread(); }
    int64_t points() const { return minimal() ? 16 : pointwise() ? 1 : 9; }
    int64_t channels() const { return spread() ? inputs.channels * 9 : inputs.channels; }
    int64_t parts() const { return (images + PART - 1) / PART; }
    int64_t across() const { return (channels() + ABREAST - 1) / ABREAST; }
    int64_t blocks() const { return (outputs.channels + ABREAST - 1) / ABREAST * across(); }
    // Channels of a block in rows of memory, filters in whole register tiles.
    int64_t width() const { return (std::min(channels(), ABREAST) + LANES - 1) / LANES * LANES; }
    int64_t height() const { return (std::min(outputs.channels, ABREAST) + ROWS - 1) / ROWS * ROWS; }
    int64_t size() const { return points() * height() * width(); }
    // Strides: powers of two would have all points in the same few places of the first cache.
    int64_t of_pixel() const { return IMAGES * width() + LANES; }
    int64_t of_point() const { return height() * 4 * IMAGES + LANES; }
    Pass of_x() const {
        return {0, 0, -top, -left, step, pointwise() ? step : 1, pointwise() ? SIDE : minimal() ? 6 : 9, 0, 0, 1, {}};
    }

    // What a thread works in.
    struct Room {
        Memory raw, turned, x, g, of_y;
        explicit Room(const WeightGradient &of) {
            const int64_t plane = of.of_x().pitch * of.of_x().pitch;
            raw = memory(PART * plane * ABREAST);
            turned = memory(plane * of.of_pixel());
            x = memory(of.minimal() ? 64 * of.of_pixel() : 1);
            g = memory(PART * SIDE * SIDE * of.height());
            of_y = memory(16 * of.of_point());
        }
    };

    // The sums of a block over a part of the batch, [points, height, width], into `sums`.
    void add(int64_t block, int64_t part, Room &room, float *sums) const {
        const int64_t f0 = block / across() * ABREAST, f1 = std::min(outputs.channels, f0 + ABREAST);
        const int64_t c0 = block % across() * ABREAST, c1 = std::min(channels(), c0 + ABREAST);
        const int64_t n0 = part * PART, lanes = std::min(PART, images - n0), groups = (lanes + LANES - 1) / LANES;
        const int64_t down = (outputs.height + SIDE - 1) / SIDE, wide = (outputs.width + SIDE - 1) / SIDE;
        const Pass x = of_x();
        const Pass y = {0, 0, 0, 0, 1, 1, SIDE, 0, 0, 1, {}};
        const int64_t plane = x.pitch * x.pitch, of_group = plane * ABREAST * LANES, tile = SIDE * SIDE;
        const int64_t columns = (c1 - c0 + LANES - 1) / LANES * LANES, filters = (f1 - f0 + ROWS - 1) / ROWS * ROWS;
        std::memset(sums, 0, size() * 4);
        std::memset(room.raw.get(), 0, PART * plane * ABREAST * 4);
        std::memset(room.g.get(), 0, PART * tile * height() * 4);
        for (int64_t u = 0; u < down; u++)
            for (int64_t v = 0; v < wide; v++) {
                const int64_t y0 = x.top + u * SIDE * step, x0 = x.left + v * SIDE * step;
                if (!spread()) gather(inputs, c0, c1, y0, x0, x, n0, images, groups, nullptr, room.raw.get(), of_group);
                for (int64_t c = c0; spread() && c < c1; c++)
                    gather(inputs, c / 9, c / 9 + 1, y0 + c % 9 / 3, x0 + c % 3, x, n0, images, groups, nullptr,
                           room.raw.get() + (c - c0) * plane * LANES, of_group);
                gather(outputs, f0, f1, u * SIDE, v * SIDE, y, n0, images, groups, nullptr, room.g.get(),
                       tile * height() * LANES);
                for (int64_t n = 0; n < lanes; n += IMAGES) {
                    for (int64_t g = 0; g < IMAGES / LANES; g++)
                        turn(room.raw.get() + (n / LANES + g) * of_group, plane, columns,
                             room.turned.get() + g * LANES * width());
                    const float *of_y = at_points(room, n / LANES, filters);
                    multiply_all(room, of_y, filters, columns, sums);
                }
            }
    }

    // [channels, plane, LANES images] as [plane, images, channels].
    void turn(const float *raw, int64_t plane, int64_t columns, float *to) const {
        for (int64_t c = 0; c < columns; c += LANES)
            for (int64_t pixel = 0; pixel < plane; pixel++) {
                Vector rows[LANES];
                for (int64_t i = 0; i < LANES; i++) rows[i] = Vector::load(raw + ((c + i) * plane + pixel) * LANES);
                store_turned(rows, to + pixel * of_pixel() + c, width());
            }
    }

    // Under F(3x3, 2x2), x at its points into room.x, [points, 2 x 2 tiles, images, channels], and g, [points, filters,
    // tiles, images]. Returns g, [filters, pixels, images] where it goes tap by tap.
    const float *at_points(Room &room, int64_t first, int64_t filters) const {
        const int64_t tile = SIDE * SIDE, of_group = tile * height() * LANES;
        for (int64_t f = 0; f < filters; f++)
            for (int64_t group = 0; group < IMAGES / LANES; group++) {
                const float *from = room.g.get() + (first + group) * of_group + f * tile * LANES;
                if (!minimal()) {
                    for (int64_t i = 0; i < tile; i++)
                        Vector::load(from + i * LANES).store(room.of_y.get() + (f * tile + i) * IMAGES + group * LANES);
                    continue;
                }
                for (int64_t t = 0; t < 4; t++) {
                    Vector g[4], rows[8], all[16];
                    for (int i = 0; i < 4; i++)
                        g[i] = Vector::load(from + ((t / 2 * 2 + i / 2) * SIDE + t % 2 * 2 + i % 2) * LANES);
                    for (int i = 0; i < 2; i++) of_factors(g + 2 * i, 1, rows + 4 * i, 1);
                    for (int i = 0; i < 4; i++) of_factors(rows + i, 4, all + i, 4);
                    for (int64_t p = 0; p < 16; p++)
                        all[p].store(room.of_y.get() + p * of_point() + (f * 4 + t) * IMAGES + group * LANES);
                }
            }
        if (!minimal()) return room.of_y.get();
        for (int64_t t = 0; t < 4; t++)
            for (int64_t i = 0; i < IMAGES * width(); i += LANES) {
                const float *from = room.turned.get() + (t / 2 * 12 + t % 2 * 2) * of_pixel() + i;
                Vector x[16], rows[16], all[16];
                for (int j = 0; j < 16; j++) x[j] = Vector::load(from + (j / 4 * 6 + j % 4) * of_pixel());
                for (int j = 0; j < 4; j++) of_inputs(x + 4 * j, 1, rows + 4 * j, 1);
                for (int j = 0; j < 4; j++) of_inputs(rows + j, 4, all + j, 4);
                for (int64_t p = 0; p < 16; p++) all[p].store(room.x.get() + (p * 4 + t) * of_pixel() + i);
            }
        return room.of_y.get();
    }

    void multiply_all(const Room &room, const float *of_y, int64_t filters, int64_t columns, float *sums) const {
        const int64_t runs = minimal() ? 4 : SIDE * SIDE, pitch = of_x().pitch;
        for (int64_t p = 0; p < points(); p++) {
            int64_t offsets[SIDE * SIDE];
            for (int64_t i = 0; i < runs; i++)
                offsets[i] = minimal() ? (p * 4 + i) * of_pixel()
                             : pointwise() ? i * of_pixel()
                                           : ((i / SIDE * step + p / 3) * pitch + i % SIDE * step + p % 3) * of_pixel();
            const float *x = minimal() ? room.x.get() : room.turned.get();
            const float *g = minimal() ? of_y + p * of_point() : of_y;
            for (int64_t f = 0; f < filters; f += ROWS)
                for (int64_t c = 0; c < columns;) {
                    const int64_t left = (columns - c) / LANES;
                    const int vectors = left >= VECTORS ? VECTORS : left >= 2 ? 2 : 1;
                    const auto how = vectors == 4 ? multiply<VECTORS> : vectors == 2 ? multiply<2> : multiply<1>;
                    how(x + c, offsets, runs, g + f * runs * IMAGES, runs * IMAGES, width(),
                        sums + (p * height() + f) * width() + c);
                    c += vectors * LANES;
                }
        }
    }

    // The gradient of a block's weights from its sums, into out [outputs, inputs, kernel, kernel].
    void finish(int64_t block, const float *sums, float *out) const {
        const int64_t f0 = block / across() * ABREAST, f1 = std::min(outputs.channels, f0 + ABREAST);
        const int64_t c0 = block % across() * ABREAST, c1 = std::min(channels(), c0 + ABREAST);
        const int64_t taps = pointwise() ? 1 : 9, of_point = height() * width();
        for (int64_t f = 0; f < f1 - f0; f++)
            for (int64_t c = 0; c < c1 - c0; c++) {
                const float *from = sums + f * width() + c;
                float *to = out + ((f0 + f) * channels() + c0 + c) * taps, rows[12];
                if (minimal()) {
                    for (int i = 0; i < 4; i++) of_products(from + i * of_point, 4 * of_point, rows + i, 4);
                    for (int i = 0; i < 3; i++) of_products(rows + 4 * i, 1, to + 3 * i, 1);
                } else
                    for (int64_t t = 0; t < taps; t++) to[t] = from[t * of_point];
            }
    }
};

float halved(const float *partials) {
    float left[PARTIALS];
    std::copy(partials, partials + PARTIALS, left);
    for (int64_t size = PARTIALS / 2; size > 0; size /= 2)
        for (int64_t i = 0; i < size; i++) left[i] += left[i + size];
    return left[0];
}

int64_t below(int64_t x) { return x >= 0 ? x / 2 : -((1 - x) / 2); }  // floor of x / 2

}  // namespace

extern "C" {

// A layer as sparse.py tells it: sizes, the strides of x and of y, and whether its weights are of any value.
struct Geometry {
    int64_t images, inputs, height, width, outputs, out_height, out_width, kernel, stride, top, left;  // the padding
    int64_t of_x[3], of_y[3], valued;
};

// y = alpha conv(x, B) + bias of w = alpha * B [outputs, inputs, kernel, kernel]; alpha [outputs] is written.
// Returns 0, and does nothing, where w is no such weight. If `valued`, w is any weight, in the place of alpha * B.
int64_t mpt_convolve(float *x, const float *w, const float *bias, const Geometry *of, float *alpha, float *y) {
    const int64_t taps = of->kernel * of->kernel;
    if (!of->valued && !alphas(w, of->outputs, of->inputs * taps, alpha)) return 0;
    const bool wide = of->kernel == 3 && of->stride == 2;
    Pass pass = {of->out_height, of->out_width, -of->top, -of->left, of->stride, of->kernel == 3 ? 1 : of->stride,
                 of->kernel == 1 ? SIDE : wide ? 9 : 6, 0, 0, 1, {}};
    for (int t = 0; t < taps; t++) pass.tap[t] = (int)(t / of->kernel * pass.pitch + t % of->kernel);
    const int64_t plane = pass.pitch * pass.pitch;
    const int64_t block = std::max<int64_t>(1, std::min(of->inputs, first_cache() / (plane * LANES * 4)));
    const std::vector<Lists> blocks = listed(w, of->outputs, of->inputs, taps, block, {pass}, plane, of->valued);
    const Images from = {x, of->inputs, of->height, of->width, of->of_x[0], of->of_x[1], of->of_x[2]};
    const Images to = {y, of->outputs, of->out_height, of->out_width, of->of_y[0], of->of_y[1], of->of_y[2]};
    const Add how = of->kernel == 1 ? tiles<4, 1>(of->valued) : wide ? tiles<9, 2>(of->valued) : tiles<6, 1>(of->valued);
    walk(from, to, of->images, {pass}, blocks, block, how, nullptr, of->valued ? nullptr : alpha, bias);
    return 1;
}

// The gradient of x from g, that of y, into x's place; alpha as mpt_convolve wrote it.
void mpt_convolve_back(float *g, const float *w, const float *alpha, const Geometry *of, float *x) {
    const int64_t taps = of->kernel * of->kernel, step = of->stride;
    std::vector<Pass> passes;
    for (int64_t top = 0; top < step; top++)
        for (int64_t left = 0; left < step; left++) {
            Pass pass = {(of->height - top + step - 1) / step, (of->width - left + step - 1) / step, 0, 0, 1, 1,
                         of->kernel == 1 ? SIDE : 6, top, left, step, {}};
            int64_t down[9], right[9];
            pass.top = pass.left = INT32_MAX;
            for (int t = 0; t < taps; t++) {
                const int64_t y = top + of->top - t / of->kernel, x = left + of->left - t % of->kernel;
                pass.tap[t] = step == 2 && ((y & 1) || (x & 1)) ? -1 : 0;
                down[t] = step == 2 ? below(y) : y;
                right[t] = step == 2 ? below(x) : x;
                if (pass.tap[t] < 0) continue;
                pass.top = std::min(pass.top, down[t]);
                pass.left = std::min(pass.left, right[t]);
            }
            for (int t = 0; t < taps; t++)
                if (pass.tap[t] == 0) pass.tap[t] = (int)((down[t] - pass.top) * pass.pitch + right[t] - pass.left);
            passes.push_back(pass);
        }
    const int64_t plane = passes[0].pitch * passes[0].pitch;
    const int64_t block = std::max<int64_t>(1, std::min(of->outputs, first_cache() / (plane * LANES * 4)));
    const Memory across = turned(w, of->outputs, of->inputs, taps);
    const std::vector<Lists> blocks =
        listed(across.get(), of->inputs, of->outputs, taps, block, passes, plane, of->valued);
    const Images from = {g, of->outputs, of->out_height, of->out_width, of->of_y[0], of->of_y[1], of->of_y[2]};
    const Images to = {x, of->inputs, of->height, of->width, of->of_x[0], of->of_x[1], of->of_x[2]};
    const Add how = of->kernel == 1 ? tiles<4, 1>(of->valued) : tiles<6, 1>(of->valued);
    walk(from, to, of->images, passes, blocks, block, how, of->valued ? nullptr : alpha, nullptr, nullptr);
}

// The gradient of w from g, that of y: into out [outputs, inputs, kernel, kernel].
void mpt_convolve_weight(float *x, float *g, const Geometry *of, float *out) {
    const WeightGradient gradient = {
        {x, of->inputs, of->height, of->width, of->of_x[0], of->of_x[1], of->of_x[2]},
        {g, of->outputs, of->out_height, of->out_width, of->of_y[0], of->of_y[1], of->of_y[2]},
        of->images, of->kernel, of->stride, of->top, of->left};
    const int64_t blocks = gradient.blocks(), parts = gradient.parts(), size = gradient.size();
    // Parts at once where there are too few blocks for all threads, as far as memory goes.
    const bool apart = blocks < 2 * omp_get_max_threads() && blocks * parts * size <= 1 << 26;
    const Memory all = memory(apart ? blocks * parts * size : 1);
#pragma omp parallel
    {
        WeightGradient::Room room(gradient);
        const Memory sums = memory(size), total = memory(size);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < (apart ? blocks * parts : 0); item++)
            gradient.add(item / parts, item % parts, room, all.get() + item * size);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            std::memset(total.get(), 0, size * 4);
            for (int64_t part = 0; part < parts; part++) {
                if (!apart) gradient.add(block, part, room, sums.get());
                const float *next = apart ? all.get() + (block * parts + part) * size : sums.get();
                for (int64_t i = 0; i < size; i++) total[i] += next[i];
            }
            gradient.finish(block, total.get(), out);
        }
    }
}

// y = alpha B x + bias of w = alpha * B [outputs, inputs]: x [inputs, images], y [outputs, images]. As mpt_convolve.
int64_t mpt_linear(float *x, const float *w, const float *bias, const Geometry *of, float *alpha, float *y) {
    if (!alphas(w, of->outputs, of->inputs, alpha)) return 0;
    const Images from = {x, of->inputs, 1, 1, of->of_x[0], 0, 0}, to = {y, of->outputs, 1, 1, of->of_y[0], 0, 0};
    linear(w, from, to, of->images, nullptr, alpha, bias);
    return 1;
}

// The gradient of x from g, that of y, into x's place.
void mpt_linear_back(float *g, const float *w, const float *alpha, const Geometry *of, float *x) {
    const Images from = {g, of->outputs, 1, 1, of->of_y[0], 0, 0}, to = {x, of->inputs, 1, 1, of->of_x[0], 0, 0};
    linear(turned(w, of->outputs, of->inputs, 1).get(), from, to, of->images, alpha, nullptr, nullptr);
}

// The gradient of w from g: into out [outputs, inputs], a sum over the images one after the other, fused multiply-add.
void mpt_linear_weight(const float *x, const float *g, const Geometry *of, float *out) {
    constexpr int ROWS = 6, VECTORS = LANES == 16 ? 4 : 2;
    constexpr int64_t WIDE = VECTORS * LANES;
#pragma omp parallel
    {
        const Memory turned = memory(of->images * WIDE);
#pragma omp for schedule(static)
        for (int64_t c0 = 0; c0 < of->inputs; c0 += WIDE) {
            const int64_t wide = std::min(WIDE, of->inputs - c0);
            for (int64_t n = 0; n < of->images; n++)
                for (int64_t c = 0; c < WIDE; c++)
                    turned[n * WIDE + c] = c < wide ? x[(c0 + c) * of->of_x[0] + n] : 0;
            for (int64_t f0 = 0; f0 < of->outputs; f0 += ROWS) {
                const float *each[ROWS];
                for (int f = 0; f < ROWS; f++) each[f] = g + std::min(f0 + f, of->outputs - 1) * of->of_y[0];
                Vector sum[ROWS][VECTORS];
#pragma GCC unroll 6
                for (int f = 0; f < ROWS; f++)
#pragma GCC unroll 4
                    for (int v = 0; v < VECTORS; v++) sum[f][v] = Vector::zero();
                for (int64_t n = 0; n < of->images; n++) {
                    Vector inputs[VECTORS];
#pragma GCC unroll 4
                    for (int v = 0; v < VECTORS; v++) inputs[v] = Vector::load(turned.get() + n * WIDE + v * LANES);
#pragma GCC unroll 6
                    for (int f = 0; f < ROWS; f++) {
                        const Vector of_y = Vector::all(each[f][n]);
#pragma GCC unroll 4
                        for (int v = 0; v < VECTORS; v++) sum[f][v] = sum[f][v].plus_product(of_y, inputs[v]);
                    }
                }
                for (int f = 0; f < std::min<int64_t>(ROWS, of->outputs - f0); f++)
                    for (int64_t v = 0; v * LANES < wide; v++)
                        sum[f][v].store(out + (f0 + f) * of->inputs + c0 + v * LANES, wide - v * LANES);
            }
        }
    }
}

// The gradient of a bias from g [outputs, height, width, images], its sums those of a weight whose input is 1.
void mpt_bias_gradient(float *g, const Geometry *of, float *out) {
    const Images from = {g, of->outputs, of->out_height, of->out_width, of->of_y[0], of->of_y[1], of->of_y[2]};
#pragma omp parallel for schedule(static)
    for (int64_t f = 0; f < of->outputs; f++) {
        float sums[PARTIALS] = {};
        for (int64_t n = 0; n < of->images; n += PARTIALS)
            for (int64_t y = 0; y < of->out_height; y++)
                for (int64_t x = 0; x < of->out_width; x++)
                    for (int64_t i = 0; i < std::min(PARTIALS, of->images - n); i++) sums[i] += from.at(f, y, x)[n + i];
        out[f] = halved(sums);
    }
}

}  // extern "C"

#endif
