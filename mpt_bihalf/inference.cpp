// A trained network as a program: layers whose weights are -1, 0, +1 add and subtract what the kept ones name. It needs no
// library; OpenMP gives it threads. `tickets/lowering.py` makes programs, `ticket export --cpp` puts this file beside one.
//
// A vector's lanes are the images of a batch, or, for a single image, its patches: each lane has a rectangle of every map,
// and a tap that leaves it reads the neighbour's lane. Maps are [channel, row, column, lane] in memory. What a sign gives
// are bytes, whose sums are whole numbers. Each other sum has one order, whatever the lanes, tiles and threads, so that an
// image gets the same bits alone and in any batch: sums of blocks of inputs are added up in turn. Within a block, by channel
// and tap, come first the inputs of positive weights and then those of negative ones; in a linear layer by 64 inputs.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>
#include <type_traits>
#include <vector>
#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace inference {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#elif defined(__AVX2__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif
constexpr int64_t WIDE = 4 * LANES;  // lanes of a vector of bytes

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Words __attribute__((vector_size(4 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(WIDE)));
typedef int8_t HalfBytes __attribute__((vector_size(WIDE / 2)));
typedef int8_t FewBytes __attribute__((vector_size(LANES)));
typedef int16_t Shorts __attribute__((vector_size(WIDE)));
typedef int16_t FewShorts __attribute__((vector_size(2 * LANES)));

template <class V>
inline V load(const void *from) {
    V found;
    std::memcpy(&found, from, sizeof found);
    return found;
}
template <class V>
inline void store(void *to, V value) {
    std::memcpy(to, &value, sizeof value);
}
inline Floats all(float x) { return x - Floats{}; }

inline Floats plus_product(Floats sum, Floats x, Floats y) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)sum);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)sum);
#else
    return sum + x * y;
#endif
}

// What compilers make long code of.
inline FewBytes few_bytes(Floats x) {
#if defined(__AVX512F__)
    return (FewBytes)_mm512_cvtepi32_epi8(_mm512_cvtps_epi32((__m512)x));
#elif defined(__AVX2__)
    const __m256i whole = _mm256_cvtps_epi32((__m256)x);
    const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    return (FewBytes)_mm_cvtsi128_si64(_mm_packs_epi16(shorts, shorts));
#else
    return __builtin_convertvector(x, FewBytes);
#endif
}

// a where it is larger, else x, which may be NaN; and where it is smaller.
inline Floats larger(Floats a, Floats x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_max_ps((__m512)a, (__m512)x);
#elif defined(__AVX2__)
    return (Floats)_mm256_max_ps((__m256)a, (__m256)x);
#else
    return a > x ? a : x;
#endif
}
inline Floats smaller(Floats a, Floats x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_min_ps((__m512)a, (__m512)x);
#elif defined(__AVX2__)
    return (Floats)_mm256_min_ps((__m256)a, (__m256)x);
#else
    return a < x ? a : x;
#endif
}
inline float larger(float a, float x) { return a > x ? a : x; }
inline float smaller(float a, float x) { return a < x ? a : x; }

// ---- The program: 32-bit words. A number of the file is looked at here once, and trusted from then on.

constexpr uint32_t MAGIC = 0x3154504d, VERSION = 1;
constexpr int64_t LARGEST = 1 << 26;  // numbers of a value
enum Kind { CONVOLUTION, LINEAR, POOLING, POINTWISE, CHANNELS, FLATTEN };
enum StepKind { AFFINE, ADD, MULTIPLY, CLAMP, PRELU, FUNCTION, HALVE, SIGN, THRESHOLD };
enum Function { SIGMOID, SILU, HARD_SIGMOID, HARD_SWISH, TANH, GELU };

struct Value {
    int64_t channels, height, width;
    bool sign;  // bytes of +1 and -1
    bool map() const { return height * width > 1; }
};

// What is done with each output, in turn. a, b: arrays of one number a channel; operand: a value of the same shape, or of
// one pixel. HALVE: the maximum of 2 x 2 pixels. THRESHOLD: +1 where a whole number is above a, -1 elsewhere; b turns it.
struct Step {
    StepKind kind;
    const float *a, *b;
    const int32_t *t, *turn;
    int operand;
    float low, high;
    Function function;
};

struct Operation {
    Kind kind;
    int in, out;
    int64_t kernel[2], stride[2], padding[2], dilation[2], groups;
    const uint64_t *kept, *negative;  // [filters, words]: bits
    const float *weights;             // [filters, inputs]: of real-valued layers
    int64_t inputs, words;            // of a filter
    bool maximum, inside;             // of pooling: windows are side by side
    const int32_t *windows[2];        // begin and end of each row's, each column's
    const float *divisors[2];
    const int32_t *source;            // of each channel: a value, or -1 for zeros, and a channel of it
    std::vector<Step> steps;
    bool halves() const {
        return std::any_of(steps.begin(), steps.end(), [](const Step &step) { return step.kind == HALVE; });
    }
    std::vector<int> operands() const {
        std::vector<int> found;
        for (const Step &step : steps)
            if (step.kind == ADD || step.kind == MULTIPLY) found.push_back(step.operand);
        return found;
    }
};

struct Broken : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Program {
    std::unique_ptr<uint64_t[]> content;
    std::vector<Value> values;
    std::vector<Operation> operations;
    int in, out;
    bool bytes = false;

    Program(const void *from, int64_t size) : content(new uint64_t[size / 8 + 1]), end(size / 4) {
        std::memcpy(content.get(), from, size);
        if (size % 8 || word(0) != (int32_t)MAGIC || word(1) != (int32_t)VERSION) throw Broken("no program");
        const int64_t count = number(2, 1, 1 << 20), operation_count = number(3, 0, 1 << 20);
        int64_t at = 8;
        for (int64_t i = 0; i < count; i++, at += 4) {
            const int64_t c = number(at, 1, 1 << 28), h = number(at + 1, 1, 1 << 16), w = number(at + 2, 1, 1 << 16);
            values.push_back({c, h, w, number(at + 3, 0, 1) == 1});
            if (c * h * w > LARGEST) throw Broken("a value is too large");
            bytes |= values.back().sign;
        }
        in = index(4), out = index(5);
        if (values[in].sign || values[out].sign || values[out].map()) throw Broken("no program of images");
        std::vector<bool> made(values.size(), false);
        made[in] = true;
        for (int64_t i = 0; i < operation_count; i++, at += 32) {
            operations.push_back(operation(at));
            const Operation &one = operations.back();
            bool there = made[one.in] && !made[one.out];
            for (int operand : one.operands()) there = there && made[operand];
            for (int64_t c = 0; one.kind == CHANNELS && c < values[one.out].channels; c++)
                there = there && (one.source[2 * c] < 0 || made[one.source[2 * c]]);
            if (!there) throw Broken("a value is used before it is made, or made twice");
            made[one.out] = true;
        }
        if (!made[out]) throw Broken("the output is not made");
    }

  private:
    int64_t end;
    int32_t word(int64_t at) const {
        if (at < 0 || at >= end) throw Broken("the program is cut off");
        return ((const int32_t *)content.get())[at];
    }
    int64_t number(int64_t at, int64_t least, int64_t most) const {
        const int64_t found = word(at);
        if (found < least || found > most) throw Broken("a number of the program is none that it may be");
        return found;
    }
    int index(int64_t at) const { return (int)number(at, 0, (int64_t)values.size() - 1); }
    template <class T>
    const T *array(int64_t at, int64_t count) const {
        const int64_t begin = number(at, 0, end);
        if (count > (end - begin) * 4 / (int64_t)sizeof(T) || begin * 4 % sizeof(T)) throw Broken("an array is cut off");
        return (const T *)((const int32_t *)content.get() + begin);
    }

    Operation operation(int64_t at) const {
        Operation one{};
        one.kind = (Kind)number(at, 0, FLATTEN);
        one.in = index(at + 1), one.out = index(at + 2);
        const Value &x = values[one.in], &y = values[one.out];
        Value full = y;  // before the pixels are halved
        const int64_t steps = word(at + 3), count = number(at + 4, 0, 64);
        for (int64_t i = 0; i < count; i++) {
            one.steps.push_back(step(steps + 8 * i, y.channels));
            if (one.steps.back().kind != HALVE) continue;
            if (full.height != y.height) throw Broken("it halves twice");
            full.height *= 2, full.width *= 2;
        }
        const bool halved = full.height != y.height, ends_in_sign = count && one.steps.back().kind >= SIGN;
        for (int64_t i = 0; i + 1 < count; i++)
            if (one.steps[i].kind >= SIGN) throw Broken("a sign is not the last step");
        if (halved && one.kind != CONVOLUTION) throw Broken("only a convolution halves");
        for (int operand : one.operands()) {
            const Value &z = values[operand];
            if (z.sign || z.channels != y.channels || (z.map() && (halved || z.height != y.height || z.width != y.width)))
                throw Broken("an operand does not fit");
        }
        bool fits = true;
        if (one.kind == CONVOLUTION || one.kind == LINEAR) {
            one.groups = one.kind == LINEAR ? 1 : number(at + 13, 1, y.channels);
            int64_t taps = 1;
            for (int i = 0; i < 2 && one.kind == CONVOLUTION; i++) {
                one.kernel[i] = number(at + 5 + i, 1, 64), one.stride[i] = number(at + 7 + i, 1, 64);
                one.padding[i] = number(at + 9 + i, 0, 1024), one.dilation[i] = number(at + 11 + i, 1, 64);
                taps *= one.kernel[i];
            }
            fits = x.channels % one.groups == 0 && y.channels % one.groups == 0 && (ends_in_sign || !y.sign) &&
                   (one.kind == CONVOLUTION ? x.map() && taps <= 1024 : !x.map() && !y.map());
            one.inputs = x.channels / one.groups * taps, one.words = (one.inputs + 63) / 64;
            if (number(at + 14, 0, 1)) one.weights = array<float>(at + 15, y.channels * one.inputs);
            else one.kept = array<uint64_t>(at + 15, 2 * y.channels * one.words);
            if (one.kept) one.negative = one.kept + y.channels * one.words;
            fits = fits && (!x.sign || (one.kept && taps <= 127));
            for (int64_t f = 0; one.kept && f < y.channels; f++)
                if (one.inputs % 64 && one.kept[(f + 1) * one.words - 1] >> one.inputs % 64) fits = false;
        } else if (one.kind == POOLING) {
            one.maximum = number(at + 5, 0, 1), one.inside = number(at + 6, 0, 1);
            fits = x.channels == y.channels && (x.sign ? one.maximum && count == 0 : ends_in_sign || !y.sign);
            const int64_t sizes[2] = {x.height, x.width}, counts[2] = {y.height, y.width};
            for (int i = 0; i < 2; i++) {
                one.windows[i] = array<int32_t>(at + 7 + i, 2 * counts[i]);
                one.divisors[i] = array<float>(at + 9 + i, counts[i]);
                one.stride[i] = number(at + 11 + i, 1, 1 << 16);
                for (int64_t j = 0; j < counts[i]; j++) {
                    const int64_t begin = one.windows[i][2 * j], stop = one.windows[i][2 * j + 1];
                    fits = fits && begin >= 0 && begin < stop && stop <= sizes[i];
                    if (one.inside) fits = fits && begin == j * one.stride[i] && stop == begin + one.stride[i];
                }
            }
            fits = fits && (!x.sign || y.sign);
        } else if (one.kind == POINTWISE) {
            fits = x.channels == y.channels && x.height == y.height && x.width == y.width && (ends_in_sign || !y.sign);
        } else if (one.kind == CHANNELS) {
            one.source = array<int32_t>(at + 5, 2 * y.channels);
            fits = count == 0 && x.height == y.height && x.width == y.width && x.sign == y.sign;
            for (int64_t c = 0; c < y.channels; c++) {
                if (one.source[2 * c] < 0) {
                    fits = fits && !y.sign;  // a channel of zeros
                    continue;
                }
                if (one.source[2 * c] >= (int64_t)values.size()) throw Broken("no such value");
                const Value &z = values[one.source[2 * c]];
                fits = fits && one.source[2 * c + 1] >= 0 && one.source[2 * c + 1] < z.channels && z.sign == y.sign &&
                       z.height == y.height && z.width == y.width;
            }
        } else {
            fits = count == 0 && x.sign == y.sign && !y.map() && x.channels * x.height * x.width == y.channels;
        }
        if (!fits) throw Broken("an operation does not fit its values");
        return one;
    }

    Step step(int64_t at, int64_t channels) const {
        Step one{};
        one.kind = (StepKind)number(at, 0, THRESHOLD);
        if (one.kind == AFFINE) one.a = array<float>(at + 1, channels), one.b = array<float>(at + 2, channels);
        if (one.kind == PRELU) one.a = array<float>(at + 1, channels);
        if (one.kind == THRESHOLD) one.t = array<int32_t>(at + 1, channels), one.turn = array<int32_t>(at + 2, channels);
        if (one.kind == ADD || one.kind == MULTIPLY) one.operand = index(at + 3);
        if (one.kind == FUNCTION) one.function = (Function)number(at + 3, 0, GELU);
        if (one.kind == CLAMP) {
            const int32_t low = word(at + 4), high = word(at + 5);
            std::memcpy(&one.low, &low, 4), std::memcpy(&one.high, &high, 4);
        }
        return one;
    }
};

// ---- Where values lie.

// down x across patches of height x width pixels, each of `lanes` numbers; a channel takes `plane` pixels.
struct Layout {
    int64_t height, width, down, across, lanes, plane;
    bool operator==(const Layout &other) const {
        return height == other.height && width == other.width && lanes == other.lanes;
    }
};

// A value in a layout. What the head is given and gives lies in its memory, once for each group of a bundle.
struct Place {
    int value;
    Layout layout;
    int64_t offset = 0, bytes = 0;
    int first = 0, last = 0, of = -1;  // the items that make and last use it; the place whose memory it is
    bool head = false;
};

// For a block of input channels: of each row the places in the buffer that its positive weights name, in order, then those
// of its negative ones. Real-valued weights stand beside their places, all among the first.
struct Lists {
    std::vector<uint32_t> starts;  // two a row
    std::vector<uint16_t> places;
    std::vector<float> values;
    bool fresh = false, flush = false;  // of bytes: sums begin at 0 here; they are added to wider ones behind it
};

struct Item {
    const Operation *operation;  // none: the value is brought into another layout
    int in, out;
    std::vector<int> operands, sources;
    int64_t rows = 0, columns = 0, block = 0, plane = 0;  // of a convolution's tile, in its buffer
    bool halo = false, narrow = false;                    // taps share the buffer's pixels; bytes suffice for sums
    bool usual = false;                                   // the steps are AFFINE, CLAMP from below and perhaps HALVE
    std::vector<std::vector<Lists>> lists;                // of each group of channels
    Layout full;                                          // of the outputs before they are halved
};

struct Free {
    void operator()(char *memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<char[], Free>;
Memory memory(int64_t bytes) {
    void *found = std::aligned_alloc(64, (bytes + 127) / 64 * 64);
    if (!found) throw std::bad_alloc();
    return Memory((char *)found);
}

// Pixels of the buffer that lists name: so many fit the first cache. The order of a sum depends on it.
constexpr int64_t PIXELS = 720;
constexpr int64_t KEPT = 36;           // weights of a filter that a convolution's block has at most, in the mean
constexpr int64_t INPUTS = 512;        // of a linear layer's block
constexpr int64_t SOME = 64;           // of those, as many as are in the first cache for a batch
constexpr int64_t ABREAST = 4;         // rows of a linear layer that are summed together for a single image
constexpr int64_t TOGETHER = 256;      // rows whose sums are held at a time
constexpr int64_t NARROW = 127;        // signs that a sum of bytes holds

inline int64_t over(int64_t x, int64_t y) { return (x + y - 1) / y; }

struct Plan {
    const Program &program;
    const bool single;
    const int64_t vectors, lanes;  // vectors of floats in a pixel, lanes of one
    int64_t down = 1, across = 1, bundle = 1;
    std::vector<Place> places;
    std::vector<Item> items;
    size_t head = 0;  // the first item that is done for a whole bundle
    int64_t body_bytes = 0, head_bytes = 0, scratch_bytes = 0, sums_bytes = 0;
    int input, output;
    std::vector<float> masks;  // by how far a patch lies off, down and across: -1 (all bits) where there is one
    std::vector<int8_t> byte_masks;
    std::vector<std::vector<int>> known;  // of each value: its places

    Plan(const Program &given, bool of_one_image)
        : program(given), single(of_one_image), vectors(given.bytes ? 4 : 1), lanes(vectors * LANES),
          known(given.values.size()) {
        if (single) {
            while (down * down * 4 <= lanes) down *= 2;
            across = lanes / down;
            make_masks();
        } else {
            bundle = given.bytes ? 2 : 8;
        }
        const Value &x = program.values[program.in];
        input = place(program.in, single ? plain(x) : images(x));
        size_t first_of_head = program.operations.size();
        while (!single && first_of_head > 0 && of_head(program.operations[first_of_head - 1])) first_of_head--;
        for (size_t i = 0; i < program.operations.size(); i++) {
            if (i == first_of_head) head = items.size();
            add(program.operations[i]);
        }
        const Value &y = program.values[program.out];
        output = given_in(program.out, single ? plain(y) : images(y));
        if (first_of_head == program.operations.size()) head = items.size();  // what turns the output is of the body too
        allocate();
    }

    Layout plain(const Value &x) const { return {x.height, x.width, 1, 1, 1, 0}; }
    Layout images(const Value &x) const { return {x.height, x.width, 1, 1, lanes, 0}; }
    Layout patches(int64_t height, int64_t width) const { return {height, width, down, across, lanes, 0}; }
    int root(int place) const { return places[place].of < 0 ? place : root(places[place].of); }

  private:
    bool of_head(const Operation &one) const {
        bool vector = !program.values[one.in].map() && !program.values[one.out].map() && one.kind != FLATTEN;
        for (int operand : one.operands()) vector = vector && !program.values[operand].map();
        return vector && one.kind != CHANNELS;
    }

    void make_masks() {
        for (int64_t y = -down; y <= down; y++)
            for (int64_t x = -across; x <= across; x++)
                for (int64_t lane = 0; lane < lanes; lane++) {
                    const int64_t row = lane / across + y, column = lane % across + x;
                    const bool there = row >= 0 && row < down && column >= 0 && column < across;
                    const int32_t bits = there ? -1 : 0;
                    float mask;
                    std::memcpy(&mask, &bits, 4);
                    masks.push_back(mask), byte_masks.push_back((int8_t)bits);
                }
    }

    int place(int value, const Layout &layout, int of = -1) {
        places.push_back({value, layout});
        places.back().of = of;
        places.back().first = places.back().last = (int)items.size();
        known[value].push_back((int)places.size() - 1);
        return (int)places.size() - 1;
    }
    void used(int place) { places[root(place)].last = std::max(places[root(place)].last, (int)items.size()); }

    // The value in this layout, brought into it where it is in others only.
    int given_in(int value, const Layout &layout) {
        for (int found : known[value])
            if (places[found].layout == layout) return used(found), found;
        const int from = known[value].front();
        used(from);
        const int to = place(value, layout);
        Item item{};
        item.in = from, item.out = to;
        items.push_back(item);
        return used(to), to;
    }
    const Layout &layout_of(int value) const { return places[known[value].front()].layout; }

    void add(const Operation &one) {
        Item item{};
        item.operation = &one;
        const Value &x = program.values[one.in], &y = program.values[one.out];
        if (one.kind == FLATTEN) {
            const int from = given_in(one.in, single ? plain(x) : images(x));
            place(one.out, single ? plain(y) : images(y), from);
            return;
        }
        Layout layout = single ? layout_of(one.in) : images(x), result = single ? plain(y) : images(y);
        if (one.kind == CONVOLUTION) {
            if (single) {
                const int64_t halves = one.halves() ? 2 : 1, sizes[2] = {x.height, x.width}, grid[2] = {down, across};
                const int64_t outputs[2] = {y.height * halves, y.width * halves};
                int64_t height[2] = {layout.height, layout.width};
                for (int i = 0; i < 2; i++) {
                    const int64_t unit = one.stride[i] * halves;
                    const bool fits = layout.lanes > 1 && height[i] % unit == 0 &&
                                      height[i] / one.stride[i] * grid[i] >= outputs[i];
                    if (!fits) height[i] = unit * std::max(over(outputs[i], halves * grid[i]), over(sizes[i], unit * grid[i]));
                }
                layout = patches(height[0], height[1]);
                item.full = patches(height[0] / one.stride[0], height[1] / one.stride[1]);
                result = patches(item.full.height / halves, item.full.width / halves);
            } else {
                item.full = images(y);
                if (one.halves()) item.full.height *= 2, item.full.width *= 2;
            }
        } else if (one.kind == POOLING && single) {
            const bool inside = one.inside && layout.lanes > 1 && y.map() && layout.height % one.stride[0] == 0 &&
                                layout.width % one.stride[1] == 0;
            if (inside) result = patches(layout.height / one.stride[0], layout.width / one.stride[1]);
            else layout = plain(x);
        } else if (one.kind == LINEAR && single) {
            layout = plain(x);
        } else if (one.kind == CHANNELS) {
            layout = single ? layout_of(one.in) : images(y);
            result = layout;
        } else if (one.kind == POINTWISE) {
            result = layout;
        }
        if (one.kind == CHANNELS) {
            std::vector<int> of(program.values.size(), -1);
            for (int64_t c = 0; c < y.channels; c++) {
                if (one.source[2 * c] < 0) {
                    item.sources.push_back(-1);
                    continue;
                }
                int &from = of[one.source[2 * c]];
                if (from < 0) from = given_in(one.source[2 * c], layout);
                item.sources.push_back(from);
            }
            item.in = given_in(one.in, layout);
        } else {
            item.in = given_in(one.in, layout);
        }
        for (int operand : one.operands()) {
            const Value &z = program.values[operand];
            const Layout at = one.kind == CONVOLUTION ? item.full : result;
            item.operands.push_back(given_in(operand, z.map() ? at : single ? plain(z) : images(z)));
        }
        for (int operand : item.operands) used(operand);
        for (int source : item.sources)
            if (source >= 0) used(source);
        used(item.in);
        if (one.kind == CONVOLUTION) tile(item, x, y);
        if (one.kind == LINEAR) {
            item.block = x.sign ? NARROW : SOME;
            if (!single) item.lists.push_back(listed(one, 0, y.channels, item.block, 1, {0}, x.sign));
            else if (!x.sign) item.lists.push_back(abreast(one, y.channels));
            sums_bytes = std::max(sums_bytes, over(y.channels, ABREAST) * ABREAST * bundle * lanes * (x.sign ? 2 : 8));
            scratch_bytes = std::max(scratch_bytes, single ? x.channels + INPUTS * 8 + 64
                                                           : item.block * bundle * lanes * (x.sign ? 1 : 4));
        }
        item.out = place(one.out, result);
        items.push_back(item);
    }

    void tile(Item &item, const Value &x, const Value &y) {
        const Operation &one = *item.operation;
        const int64_t height = item.full.height, width = item.full.width, taps = one.kernel[0] * one.kernel[1];
        const int64_t side = std::min(height, width) >= 3 ? 4 : height * width > 1 ? 2 : 1;
        item.rows = item.columns = side;
        if (one.halves() && side == 1) item.rows = item.columns = 2;
        item.halo = one.kernel[0] == 3 && one.kernel[1] == 3 && one.stride[0] == 1 && one.stride[1] == 1 &&
                    one.dilation[0] == 1 && one.dilation[1] == 1;
        const int64_t pitch = item.halo ? item.columns + 2 : item.columns;
        item.plane = item.halo ? (item.rows + 2) * pitch : item.rows * pitch * taps;
        const int64_t inputs = x.channels / one.groups;
        // The more of a filter is kept the fewer channels, lest sums of one sign grow before those of the other come.
        int64_t kept = 0;
        for (int64_t w = 0; one.kept && w < y.channels * one.words; w++) kept += __builtin_popcountll(one.kept[w]);
        const int64_t few = one.kept && !x.sign ? KEPT * inputs * y.channels / std::max<int64_t>(1, kept) : inputs;
        const int64_t fits = PIXELS / (item.halo ? 36 : 16 * taps), whole = x.sign ? NARROW / taps : inputs;
        const int64_t block = std::max<int64_t>(1, std::min({fits, few, whole}));
        item.block = over(inputs, over(inputs, block));
        std::vector<int64_t> tap(taps);
        for (int64_t i = 0; i < taps; i++)
            tap[i] = item.halo ? i / 3 * pitch + i % 3 : i * item.rows * item.columns;
        const int64_t filters = y.channels / one.groups;
        for (int64_t g = 0; g < one.groups; g++)
            item.lists.push_back(listed(one, g * filters, (g + 1) * filters, item.block, item.plane, tap, x.sign));
        const std::vector<Step> &steps = one.steps;
        item.usual = (steps.size() == 2 || (steps.size() == 3 && steps[2].kind == HALVE)) && steps[0].kind == AFFINE &&
                     steps[1].kind == CLAMP && steps[1].high == std::numeric_limits<float>::infinity();
        item.narrow = x.sign;
        for (const auto &blocks : item.lists)
            for (const Lists &lists : blocks) item.narrow = item.narrow && !lists.flush;
        const int64_t pixels = item.rows * item.columns, rows = std::min(filters, TOGETHER);
        scratch_bytes = std::max(scratch_bytes, item.block * item.plane * lanes * (x.sign ? 1 : 4));
        sums_bytes = std::max(sums_bytes, rows * pixels * lanes * (x.sign ? 3 : 4));
    }

    std::vector<Lists> listed(const Operation &one, int64_t f0, int64_t f1, int64_t block, int64_t plane,
                              const std::vector<int64_t> &tap, bool bytes) const {
        const int64_t taps = (int64_t)tap.size(), channels = one.inputs / taps, size = block * taps;
        std::vector<Lists> blocks(over(channels, block));
        for (Lists &lists : blocks) lists.starts.push_back(0);
        const auto named = [&](int64_t i) { return i % size / taps * plane + tap[i % taps]; };
        for (int64_t f = f0; f < f1; f++)
            for (int half = 0; half < 2; half++) {
                for (int64_t i = 0; one.weights && !half && i < one.inputs; i++) {
                    const float weight = one.weights[f * one.inputs + i];
                    if (weight == 0) continue;
                    blocks[i / size].places.push_back((uint16_t)named(i));
                    blocks[i / size].values.push_back(weight);
                }
                for (int64_t w = 0; one.kept && w < one.words; w++) {
                    const uint64_t negative = one.negative[f * one.words + w];
                    for (uint64_t left = one.kept[f * one.words + w] & (half ? negative : ~negative); left; left &= left - 1) {
                        const int64_t i = 64 * w + __builtin_ctzll(left);
                        blocks[i / size].places.push_back((uint16_t)named(i));
                    }
                }
                for (Lists &lists : blocks) lists.starts.push_back((uint32_t)lists.places.size());
            }
        for (Lists &lists : blocks) lists.places.shrink_to_fit(), lists.values.shrink_to_fit();
        if (bytes) {  // as many blocks together as no sum of theirs can overflow
            std::vector<uint32_t> held(f1 - f0, 0);
            bool any = false;
            for (size_t b = 0; b < blocks.size(); b++) {
                uint32_t most = 0;
                std::vector<uint32_t> counts(f1 - f0);
                for (int64_t f = 0; f < f1 - f0; f++) {
                    counts[f] = blocks[b].starts[2 * f + 2] - blocks[b].starts[2 * f];
                    most = std::max(most, held[f] + counts[f]);
                }
                blocks[b].fresh = b == 0 || most > NARROW;
                if (b > 0 && blocks[b].fresh) blocks[b - 1].flush = any = true, held.assign(f1 - f0, 0);
                for (int64_t f = 0; f < f1 - f0; f++) held[f] += counts[f];
            }
            if (any) blocks.back().flush = true;
        }
        return blocks;
    }

    // Of a linear layer of a single image: of ABREAST rows each the places in a copy of a block that has each input as it is
    // and then negated, and a zero at its end, which makes the rows of a block equally long.
    std::vector<Lists> abreast(const Operation &one, int64_t rows) const {
        static_assert(INPUTS % SOME == 0 && SOME == 64, "a block is whole words of bits");
        std::vector<Lists> found(over(one.inputs, INPUTS));
        std::vector<std::pair<uint16_t, float>> row[ABREAST];
        for (size_t b = 0; b < found.size(); b++) {
            const int64_t first = b * INPUTS, last = std::min(one.inputs, first + INPUTS);
            for (int64_t f = 0; f < rows; f += ABREAST) {
                size_t longest = 0;
                for (int64_t r = 0; r < ABREAST; r++) {
                    row[r].clear();
                    const int64_t at = std::min(f + r, rows - 1);
                    for (int64_t i = first; one.weights && i < last; i++)
                        if (const float weight = one.weights[at * one.inputs + i])
                            row[r].push_back({(uint16_t)(2 * (i - first)), weight});
                    for (int64_t w = first / SOME; one.kept && w < over(last, SOME); w++)
                        for (int half = 0; half < 2; half++) {
                            const uint64_t negative = one.negative[at * one.words + w];
                            uint64_t left = one.kept[at * one.words + w] & (half ? negative : ~negative);
                            for (; left; left &= left - 1)
                                row[r].push_back({(uint16_t)(2 * (SOME * w + __builtin_ctzll(left) - first) + half), 0.0f});
                        }
                    longest = std::max(longest, row[r].size());
                }
                found[b].starts.push_back((uint32_t)found[b].places.size());
                for (size_t k = 0; k < longest; k++)
                    for (const auto &each : row) {
                        found[b].places.push_back(k < each.size() ? each[k].first : (uint16_t)(2 * INPUTS));
                        if (one.weights) found[b].values.push_back(k < each.size() ? each[k].second : 0.0f);
                    }
            }
            found[b].starts.push_back((uint32_t)found[b].places.size());
            found[b].places.shrink_to_fit(), found[b].values.shrink_to_fit();
        }
        return found;
    }

    void allocate() {
        if (!single) {
            for (size_t i = head; i < items.size(); i++) {
                for (int place : {items[i].in, items[i].out}) places[root(place)].head = true;
                for (int operand : items[i].operands) places[root(operand)].head = true;
            }
            places[root(output)].head = true;
        }
        std::vector<bool> flattened(places.size(), false);
        for (size_t i = 0; i < places.size(); i++)
            if (places[i].of >= 0) flattened[root((int)i)] = true, places[i].head = places[root((int)i)].head;
        places[root(output)].last = (int)items.size();
        for (Place &one : places) {
            if (one.of >= 0) continue;
            const Value &value = program.values[one.value];
            const int64_t pixels = one.layout.height * one.layout.width;
            // Channels a power of two apart would share few lines of a cache.
            one.layout.plane = pixels + (pixels > 1 && !flattened[&one - places.data()]);
            one.bytes = value.channels * one.layout.plane * one.layout.lanes * (value.sign ? 1 : 4);
            one.bytes = over(one.bytes + 8 * lanes, 64) * 64;  // what patches read beside it is its own
            int64_t &total = one.head ? head_bytes : body_bytes;
            for (bool moved = true; moved;) {
                moved = false;
                for (const Place &other : places) {
                    if (&other >= &one) break;
                    const bool together = other.of < 0 && other.head == one.head &&
                                          (one.head || (other.first <= one.last && one.first <= other.last));
                    if (together && other.offset < one.offset + one.bytes && one.offset < other.offset + other.bytes)
                        one.offset = other.offset + other.bytes, moved = true;
                }
            }
            total = std::max(total, one.offset + one.bytes);
        }
        for (Place &one : places)
            if (one.of >= 0) one.layout.plane = one.layout.height * one.layout.width;
    }
};

// ---- What steps do to numbers: X is Floats or float.

template <class X>
X spread(float x) {
    return x - X{};
}
inline float each(float x, float (*f)(float)) { return f(x); }
inline Floats each(Floats x, float (*f)(float)) {
    for (int64_t i = 0; i < LANES; i++) x[i] = f(x[i]);
    return x;
}
template <class X>
X clamped(X x, float low, float high) {
    x = larger(spread<X>(low), x);
    return high == std::numeric_limits<float>::infinity() ? x : smaller(spread<X>(high), x);
}
template <class X>
X function_of(Function function, X x) {
    switch (function) {
    case HARD_SIGMOID: return clamped<X>(x + 3.0f, 0, 6) / 6.0f;
    case HARD_SWISH: return x * clamped<X>(x + 3.0f, 0, 6) / 6.0f;
    case SIGMOID: return each(x, [](float v) { return 1 / (1 + std::exp(-v)); });
    case SILU: return each(x, [](float v) { return v / (1 + std::exp(-v)); });
    case TANH: return each(x, [](float v) { return std::tanh(v); });
    default: return each(x, [](float v) { return 0.5f * v * (1 + std::erf(v * 0.70710678f)); });
    }
}

// A step of channel f, but for HALVE, done to COUNT numbers; operand(i): what is added to, or multiplied with, the i-th.
template <int COUNT, class X, class Operand>
inline void stepped(const Step &step, int64_t f, X *x, Operand operand) {
    const auto done = [&](auto what) {
#pragma GCC unroll 16
        for (int i = 0; i < COUNT; i++) x[i] = what(x[i], i);
    };
    switch (step.kind) {
    case AFFINE: {
        const X a = spread<X>(step.a[f]), b = spread<X>(step.b[f]);
        return done([&](X z, int) { return z * a + b; });
    }
    case CLAMP: {
        const X low = spread<X>(step.low), high = spread<X>(step.high);
        done([&](X z, int) { return larger(low, z); });
        if (step.high != std::numeric_limits<float>::infinity()) done([&](X z, int) { return smaller(high, z); });
        return;
    }
    case PRELU: {
        const X a = spread<X>(step.a[f]);
        return done([&](X z, int) { return z < X{} ? z * a : z; });
    }
    case FUNCTION: return done([&](X z, int) { return function_of<X>(step.function, z); });
    case ADD: return done([&](X z, int i) { return z + operand(i); });
    case MULTIPLY: return done([&](X z, int i) { return z * operand(i); });
    case SIGN: return done([&](X z, int) { return z >= X{} ? spread<X>(1) : spread<X>(-1); });
    case THRESHOLD: {
        const X t = spread<X>((float)step.t[f]), yes = spread<X>(step.turn[f] ? -1 : 1), no = spread<X>(step.turn[f] ? 1 : -1);
        return done([&](X z, int) { return z > t ? yes : no; });
    }
    case HALVE: return;
    }
}

inline void put(char *to, Floats x, bool sign) {
    if (sign) store(to, few_bytes(x));
    else store(to, x);
}
inline void put(char *to, float x, bool sign) {
    if (sign) *(int8_t *)to = (int8_t)x;
    else std::memcpy(to, &x, 4);
}
template <class X>
X got(const char *from, bool sign) {
    if constexpr (std::is_same_v<X, float>) {
        return sign ? (float)*(const int8_t *)from : load<float>(from);
    } else {
        return sign ? __builtin_convertvector(load<FewBytes>(from), Floats) : load<Floats>(from);
    }
}

// ---- Sums over lists.

// Of `rows` outputs, each ROWS x COLUMNS vectors.
template <int ROWS, int COLUMNS, bool Halo, bool Valued>
void add(const Lists &lists, int64_t first, int64_t rows, const char *buffer, char *sums, bool begin) {
    constexpr int COUNT = ROWS * COLUMNS, PITCH = Halo ? COLUMNS + 2 : COLUMNS;
    const uint16_t *places = lists.places.data();
    const float *values = lists.values.data();
    const uint32_t *starts = lists.starts.data() + 2 * first;
    for (int64_t row = 0; row < rows; row++, starts += 2, sums += COUNT * WIDE) {
        Floats sum[COUNT];
#pragma GCC unroll 16
        for (int i = 0; i < COUNT; i++) sum[i] = Floats{};
        const uint16_t *place = places + starts[0], *middle = places + starts[1], *end = places + starts[2];
        for (; place < middle; place++) {
            const char *from = buffer + *place * WIDE;
            const Floats weight = all(Valued ? values[place - places] : 1);
#pragma GCC unroll 16
            for (int i = 0; i < COUNT; i++) {
                const Floats x = load<Floats>(from + (i / COLUMNS * PITCH + i % COLUMNS) * WIDE);
                sum[i] = Valued ? plus_product(sum[i], x, weight) : sum[i] + x;
            }
        }
        for (; place < end; place++) {
            const char *from = buffer + *place * WIDE;
#pragma GCC unroll 16
            for (int i = 0; i < COUNT; i++) sum[i] -= load<Floats>(from + (i / COLUMNS * PITCH + i % COLUMNS) * WIDE);
        }
#pragma GCC unroll 16
        for (int i = 0; i < COUNT; i++) store(sums + i * WIDE, begin ? sum[i] : load<Floats>(sums + i * WIDE) + sum[i]);
    }
}

inline void widen(char *wide, Bytes sum, bool begin) {
    HalfBytes halves[2];
    std::memcpy(halves, &sum, WIDE);
    for (int half = 0; half < 2; half++) {
        const Shorts x = __builtin_convertvector(halves[half], Shorts);
        store(wide + half * WIDE, begin ? x : load<Shorts>(wide + half * WIDE) + x);
    }
}

// The same of bytes. narrow: the sums so far; wide: sums of 16 bits, to which they are added where the list says so.
template <int ROWS, int COLUMNS, bool Halo>
void add_bytes(const Lists &lists, int64_t first, int64_t rows, const char *buffer, char *narrow, char *wide, bool begin) {
    constexpr int COUNT = ROWS * COLUMNS, PITCH = Halo ? COLUMNS + 2 : COLUMNS;
    const uint16_t *places = lists.places.data();
    const uint32_t *starts = lists.starts.data() + 2 * first;
    for (int64_t row = 0; row < rows; row++, narrow += COUNT * WIDE, wide += COUNT * 2 * WIDE) {
        Bytes sum[COUNT];
#pragma GCC unroll 16
        for (int i = 0; i < COUNT; i++) sum[i] = lists.fresh ? Bytes{} : load<Bytes>(narrow + i * WIDE);
        const uint16_t *place = places + starts[2 * row], *middle = places + starts[2 * row + 1];
        const uint16_t *end = places + starts[2 * row + 2];
        for (; place < middle; place++) {
            const char *from = buffer + *place * WIDE;
#pragma GCC unroll 16
            for (int i = 0; i < COUNT; i++) sum[i] += load<Bytes>(from + (i / COLUMNS * PITCH + i % COLUMNS) * WIDE);
        }
        for (; place < end; place++) {
            const char *from = buffer + *place * WIDE;
#pragma GCC unroll 16
            for (int i = 0; i < COUNT; i++) sum[i] -= load<Bytes>(from + (i / COLUMNS * PITCH + i % COLUMNS) * WIDE);
        }
        if (lists.flush) {
            for (int i = 0; i < COUNT; i++) widen(wide + i * 2 * WIDE, sum[i], begin);
        } else {
#pragma GCC unroll 16
            for (int i = 0; i < COUNT; i++) store(narrow + i * WIDE, sum[i]);
        }
    }
}

template <int ROWS, int COLUMNS>
void add_tile(const Lists &lists, bool halo, int64_t first, int64_t rows, const char *buffer, char *sums, bool begin) {
    const bool valued = !lists.values.empty();
    const auto how = halo ? valued ? add<ROWS, COLUMNS, true, true> : add<ROWS, COLUMNS, true, false>
                     : valued ? add<ROWS, COLUMNS, false, true> : add<ROWS, COLUMNS, false, false>;
    how(lists, first, rows, buffer, sums, begin);
}

// ---- A run.

// Where the threads of a team wait for each other: at work, lest the system put them on one core, and only where it takes
// long, a millisecond or so, with the processor for others.
class Meeting {
    std::atomic<int> come{0}, round{0};

  public:
    void wait(int size) {
        const int now = round.load(std::memory_order_acquire);
        if (come.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            come.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round.load(std::memory_order_acquire) == now; spins++)
            if (spins > 1 << 20) std::this_thread::yield();
    }
};

struct Team {
    int rank = 0, size = 1;
    Meeting *meeting = nullptr;
    void meet() const {
        if (size > 1) meeting->wait(size);
    }
    bool mine(int64_t i) const { return i % size == rank; }
};

struct Runner {
    const Plan &plan;
    const Program &program;
    char *body, *head, *buffer, *sums;
    Team team;
    int64_t group = 0, groups = 1;  // of the bundle

    Runner(const Plan &of, char *body, char *head, char *own, Team team)
        : plan(of), program(of.program), body(body), head(head), buffer(own), sums(own + over(of.scratch_bytes, 64) * 64),
          team(team) {}

    int64_t size_of(int place) const { return program.values[plan.places[place].value].sign ? 1 : 4; }
    char *at(int place) const {
        const Place &one = plan.places[place], &top = plan.places[plan.root(place)];
        return (one.head ? head + group * plan.head_bytes : body) + top.offset + 4 * plan.lanes;
    }
    const Layout &layout(int place) const { return plan.places[place].layout; }
    const Value &value(int place) const { return program.values[plan.places[place].value]; }

    void run_body() {
        for (size_t i = 0; i < plan.head; i++) run(plan.items[i]), team.meet();
    }
    void run_head() {
        for (size_t i = plan.head; i < plan.items.size(); i++)
            if (plan.items[i].operation && plan.items[i].operation->kind == LINEAR) group = 0, multiply(plan.items[i], groups);
            else
                for (group = 0; group < groups; group++) run(plan.items[i]);
    }

  private:
    void run(const Item &item) {
        if (!item.operation) return turn(item);
        const bool plain = layout(item.in).lanes == 1;
        switch (item.operation->kind) {
        case CONVOLUTION: return convolve(item);
        case LINEAR: return multiply(item, 1);
        case POOLING: return plain ? pool<float>(item) : pool<Floats>(item);
        case POINTWISE: return plain ? point<float>(item) : point<Floats>(item);
        default: return choose(item);
        }
    }

    // Where an operand's number is for pixel (row, column) of channel f: 0 outside of its map.
    template <class X>
    X operand(int place, int64_t f, int64_t row, int64_t column, int64_t vector) const {
        const Layout &at_ = layout(place);
        const char *from = at(place);
        if (!value(place).map()) {
            from += f * at_.plane * at_.lanes * 4;
            if (at_.lanes == 1) return spread<X>(load<float>(from));
            return got<X>(from + vector * WIDE, false);
        }
        if (row >= at_.height || column >= at_.width) return X{};
        return got<X>(from + (f * at_.plane + row * at_.width + column) * at_.lanes * 4 + vector * WIDE, false);
    }

    // Whether patches have no pixels outside of the map.
    bool exact(int place) const {
        const Layout &to = layout(place);
        const Value &x = value(place);
        return to.down * to.across == 1 || (to.height * to.down == x.height && to.width * to.across == x.width);
    }

    // Zero those in one channel.
    void clear_outside(int place, int64_t c) const {
        if (exact(place)) return;
        const Layout &to = layout(place);
        const Value &x = value(place);
        const int64_t size = size_of(place);
        char *base = at(place) + c * to.plane * to.lanes * size;
        for (int64_t i = 0; i < to.height; i++)
            for (int64_t j = 0; j < to.width; j++)
                for (int64_t lane = 0; lane < to.lanes; lane++)
                    if (lane / to.across * to.height + i >= x.height || lane % to.across * to.width + j >= x.width)
                        std::memset(base + ((i * to.width + j) * to.lanes + lane) * size, 0, size);
    }

    void turn(const Item &item) const {
        const Layout &from = layout(item.in), &to = layout(item.out);
        const Value &x = value(item.in);
        const int64_t size = size_of(item.in);
        std::vector<int64_t> columns[2];
        for (int64_t j = 0; j < x.width; j++) {
            columns[0].push_back((j % from.width * from.lanes + j / from.width) * size);
            columns[1].push_back((j % to.width * to.lanes + j / to.width) * size);
        }
        for (int64_t c = team.rank; c < x.channels; c += team.size) {
            const char *source = at(item.in) + c * from.plane * from.lanes * size;
            char *result = at(item.out) + c * to.plane * to.lanes * size;
            if (to.lanes > 1) std::memset(result, 0, to.height * to.width * to.lanes * size);
            for (int64_t i = 0; i < x.height; i++) {
                const char *a = source + (i % from.height * from.width * from.lanes + i / from.height * from.across) * size;
                char *b = result + (i % to.height * to.width * to.lanes + i / to.height * to.across) * size;
                if (size == 4)
                    for (int64_t j = 0; j < x.width; j++) std::memcpy(b + columns[1][j], a + columns[0][j], 4);
                else
                    for (int64_t j = 0; j < x.width; j++) b[columns[1][j]] = a[columns[0][j]];
            }
        }
    }

    // A pixel of the buffer: where it is read in each channel, -1 for zeros, and by which mask.
    struct Source {
        int64_t offset, mask;
    };
    void sources(const Item &item, int64_t u, int64_t v, std::vector<Source> &found) const {
        const Operation &one = *item.operation;
        const Layout &from = layout(item.in);
        const int64_t size = size_of(item.in), lanes = plan.lanes;
        const auto source = [&](int64_t row, int64_t column) -> Source {
            const int64_t y = (row >= 0 ? row : row - from.height + 1) / from.height;
            const int64_t x = (column >= 0 ? column : column - from.width + 1) / from.width;
            if (y <= -from.down || y >= from.down || x <= -from.across || x >= from.across) return {-1, 0};
            const int64_t pixel = (row - y * from.height) * from.width + column - x * from.width;
            const int64_t offset = (pixel * from.lanes + y * from.across + x) * size;
            const int64_t mask = ((y + from.down) * (2 * from.across + 1) + x + from.across) * lanes;
            return {offset + lanes * size, x || y ? mask : -1};
        };
        found.clear();
        if (item.halo) {
            for (int64_t i = 0; i < item.rows + 2; i++)
                for (int64_t j = 0; j < item.columns + 2; j++)
                    found.push_back(source(u - one.padding[0] + i, v - one.padding[1] + j));
            return;
        }
        for (int64_t y = 0; y < one.kernel[0]; y++)
            for (int64_t x = 0; x < one.kernel[1]; x++)
                for (int64_t i = 0; i < item.rows; i++)
                    for (int64_t j = 0; j < item.columns; j++)
                        found.push_back(source((u + i) * one.stride[0] - one.padding[0] + y * one.dilation[0],
                                               (v + j) * one.stride[1] - one.padding[1] + x * one.dilation[1]));
    }

    // Channels c0 to c1 of the buffer's pixels: for each vector of a pixel one after the other.
    void gather(const Item &item, const std::vector<Source> &pixels, int64_t c0, int64_t c1) const {
        const Layout &from = layout(item.in);
        const int64_t size = size_of(item.in), of_channel = from.plane * from.lanes * size;
        const int64_t vectors = size == 4 ? plan.vectors : 1, of_vector = item.block * item.plane * WIDE;
        const char *base = at(item.in) - plan.lanes * size;
        const char *masks = size == 4 ? (const char *)plan.masks.data() : (const char *)plan.byte_masks.data();
        for (int64_t v = 0; v < vectors; v++) {
            char *to = buffer + v * of_vector;
            for (int64_t c = c0; c < c1; c++) {
                const char *source = base + c * of_channel + v * WIDE;
                for (const Source &pixel : pixels) {
                    __builtin_prefetch(source + pixel.offset + 2 * of_channel);
                    Words x = pixel.offset < 0 ? Words{} : load<Words>(source + pixel.offset);
                    if (pixel.mask >= 0 && pixel.offset >= 0) x &= load<Words>(masks + pixel.mask * size + v * WIDE);
                    store(to, x), to += WIDE;
                }
            }
        }
    }

    void convolve(const Item &item) {
        if (item.rows == 4) convolve<4, 4>(item);
        else if (item.rows == 2) convolve<2, 2>(item);
        else convolve<1, 1>(item);
    }

    template <int ROWS, int COLUMNS>
    void convolve(const Item &item) {
        constexpr int64_t PIXELS = ROWS * COLUMNS;
        const Operation &one = *item.operation;
        const bool bytes = value(item.in).sign;
        const int64_t filters = program.values[one.out].channels / one.groups;
        const int64_t channels = program.values[one.in].channels / one.groups;
        const int64_t across = over(item.full.width, COLUMNS), tiles = over(item.full.height, ROWS) * across;
        const int64_t together = std::min({filters, TOGETHER, over(filters, std::max<int64_t>(1, team.size / tiles))});
        const int64_t chunks = over(filters, together), vectors = bytes ? 1 : plan.vectors;
        const int64_t of_row = PIXELS * WIDE, of_vector = item.block * item.plane * WIDE;
        char *wide = sums + together * of_row;
        std::vector<Source> pixels;
        for (int64_t i = 0; i < tiles * one.groups * chunks; i++) {
            if (!team.mine(i)) continue;
            const int64_t tile = i / one.groups / chunks, g = i / chunks % one.groups, r0 = i % chunks * together;
            const int64_t r1 = std::min(filters, r0 + together), u = tile / across * ROWS, v = tile % across * COLUMNS;
            sources(item, u, v, pixels);
            const std::vector<Lists> &blocks = item.lists[g];
            bool begin = true;
            for (size_t b = 0; b < blocks.size(); b++) {
                const int64_t c0 = g * channels + b * item.block, c1 = std::min((g + 1) * channels, c0 + item.block);
                gather(item, pixels, c0, c1);
                if (bytes) {
                    const auto how = item.halo ? add_bytes<ROWS, COLUMNS, true> : add_bytes<ROWS, COLUMNS, false>;
                    how(blocks[b], r0, r1 - r0, buffer, sums, wide, begin);
                    begin = begin && !blocks[b].flush;
                } else {
                    for (int64_t w = 0; w < vectors; w++)
                        add_tile<ROWS, COLUMNS>(blocks[b], item.halo, r0, r1 - r0, buffer + w * of_vector,
                                                sums + w * together * of_row, b == 0);
                }
            }
            for (int64_t r = r0; r < r1; r++) {
                const char *narrow = sums + (r - r0) * of_row, *wider = wide + (r - r0) * 2 * of_row;
                ahead<ROWS, COLUMNS>(item, g * filters + r + 2, u, v);
                if (bytes && whole<ROWS, COLUMNS>(item, g * filters + r, narrow, wider, u, v)) continue;
                for (int64_t w = 0; w < plan.vectors; w++) {
                    if (!bytes && item.usual) {
                        usual<ROWS, COLUMNS>(item, g * filters + r, narrow + w * together * of_row, u, v, w);
                        continue;
                    }
                    Floats x[PIXELS];
#pragma GCC unroll 16
                    for (int p = 0; p < PIXELS; p++)
                        x[p] = !bytes        ? load<Floats>(narrow + w * together * of_row + p * WIDE)
                               : item.narrow ? got<Floats>(narrow + p * WIDE + w * LANES, true)
                                             : __builtin_convertvector(load<FewShorts>(wider + 2 * (p * WIDE + w * LANES)), Floats);
                    finish<ROWS, COLUMNS>(item, g * filters + r, x, u, v, w);
                }
            }
        }
        if (plan.single && !exact(item.out)) {
            team.meet();
            for (int64_t c = team.rank; c < filters * one.groups; c += team.size) clear_outside(item.out, c);
        }
    }

    // What `finish` does where the steps are the usual ones: in registers.
    template <int ROWS, int COLUMNS>
    void usual(const Item &item, int64_t f, const char *sum, int64_t u, int64_t v, int64_t w) const {
        const std::vector<Step> &steps = item.operation->steps;
        const Floats a = all(steps[0].a[f]), b = all(steps[0].b[f]), low = all(steps[1].low);
        const auto one = [&](int p) { return larger(low, load<Floats>(sum + p * WIDE) * a + b); };
        if constexpr (ROWS > 1)
            if (steps.size() == 3) {
                Floats y[ROWS * COLUMNS / 4];
#pragma GCC unroll 4
                for (int p = 0; p < ROWS * COLUMNS / 4; p++) {
                    const int first = p / (COLUMNS / 2) * 2 * COLUMNS + p % (COLUMNS / 2) * 2;
                    y[p] = larger(larger(one(first), one(first + 1)), larger(one(first + COLUMNS), one(first + COLUMNS + 1)));
                }
                return put_tile<ROWS / 2, COLUMNS / 2>(item.out, f, y, u / 2, v / 2, w);
            }
        Floats y[ROWS * COLUMNS];
#pragma GCC unroll 16
        for (int p = 0; p < ROWS * COLUMNS; p++) y[p] = one(p);
        put_tile<ROWS, COLUMNS>(item.out, f, y, u, v, w);
    }

    // Vector w of each pixel of a tile, from its sums to where it lies.
    template <int ROWS, int COLUMNS>
    void finish(const Item &item, int64_t f, Floats (&x)[ROWS * COLUMNS], int64_t u, int64_t v, int64_t w) {
        const std::vector<Step> &steps = item.operation->steps;
        int joined = 0;
        size_t i = 0;
        for (; i < steps.size() && steps[i].kind != HALVE; i++) {
            const int place = joined < (int)item.operands.size() ? item.operands[joined] : -1;
            joined += steps[i].kind == ADD || steps[i].kind == MULTIPLY;
            stepped<ROWS * COLUMNS>(steps[i], f, x, [&](int p) {
                return operand<Floats>(place, f, u + p / COLUMNS, v + p % COLUMNS, w);
            });
        }
        if (i == steps.size()) return put_tile<ROWS, COLUMNS>(item.out, f, x, u, v, w);
        if constexpr (ROWS > 1) {
            constexpr int DOWN = ROWS / 2, ACROSS = COLUMNS / 2;
            Floats y[DOWN * ACROSS];
#pragma GCC unroll 4
            for (int p = 0; p < DOWN * ACROSS; p++) {
                const int first = p / ACROSS * 2 * COLUMNS + p % ACROSS * 2;
                y[p] = larger(larger(x[first], x[first + 1]), larger(x[first + COLUMNS], x[first + COLUMNS + 1]));
            }
            for (i++; i < steps.size(); i++) {
                const int place = joined < (int)item.operands.size() ? item.operands[joined] : -1;
                joined += steps[i].kind == ADD || steps[i].kind == MULTIPLY;
                stepped<DOWN * ACROSS>(steps[i], f, y, [&](int) { return operand<Floats>(place, f, 0, 0, w); });
            }
            put_tile<DOWN, ACROSS>(item.out, f, y, u / 2, v / 2, w);
        }
    }

    template <int ROWS, int COLUMNS>
    void put_tile(int place, int64_t f, const Floats (&x)[ROWS * COLUMNS], int64_t u, int64_t v, int64_t w) const {
        const Layout &to = layout(place);
        const bool sign = value(place).sign;
        const int64_t size = sign ? 1 : 4, of_pixel = to.lanes * size, of_row = to.width * of_pixel;
        char *first = at(place) + f * to.plane * of_pixel + u * of_row + v * of_pixel + w * LANES * size;
        const bool all_of_it = u + ROWS <= to.height && v + COLUMNS <= to.width;
#pragma GCC unroll 16
        for (int p = 0; p < ROWS * COLUMNS; p++)
            if (all_of_it || (u + p / COLUMNS < to.height && v + p % COLUMNS < to.width))
                put(first + p / COLUMNS * of_row + p % COLUMNS * of_pixel, x[p], sign);
    }

    // The steps of one number, of pixel (u, v) of channel f.
    template <class X>
    X finished(const Item &item, int64_t f, X x, int64_t u, int64_t v, int64_t w) const {
        int joined = 0;
        for (const Step &step : item.operation->steps) {
            const int place = step.kind == ADD || step.kind == MULTIPLY ? item.operands[joined++] : -1;
            stepped<1>(step, f, &x, [&](int) { return operand<X>(place, f, u, v, w); });
        }
        return x;
    }

    // Let the memory of a tile's outputs come: they lie too far apart for the processor to see it.
    template <int ROWS, int COLUMNS>
    void ahead(const Item &item, int64_t f, int64_t u, int64_t v) const {
        const Layout &to = layout(item.out);
        const int64_t halves = item.full.width / to.width, of_pixel = to.lanes * size_of(item.out);
        const char *first = at(item.out) + (f * to.plane + u / halves * to.width + v / halves) * of_pixel;
        for (int64_t i = 0; i < ROWS / halves; i++)
            for (int64_t at_ = 0; at_ < COLUMNS / halves * of_pixel; at_ += 64)
                __builtin_prefetch(first + i * to.width * of_pixel + at_, 1);
    }

    // Steps that compare whole numbers, without floats; false where the steps are others.
    template <int ROWS, int COLUMNS>
    bool whole(const Item &item, int64_t f, const char *narrow, const char *wide, int64_t u, int64_t v) {
        const std::vector<Step> &steps = item.operation->steps;
        const bool halved = !steps.empty() && steps.front().kind == HALVE;
        if (steps.size() != halved + 1u || steps.back().kind != THRESHOLD) return false;
        const int32_t t = steps[halved].t[f];
        const int8_t turn = steps[halved].turn[f] ? -1 : 0;
        const Layout &to = layout(item.out);
        const int64_t halves = halved ? 2 : 1;
        char *base = at(item.out) + f * to.plane * to.lanes;
        for (int64_t i = 0; i < ROWS / halves; i++)
            for (int64_t j = 0; j < COLUMNS / halves; j++) {
                const int64_t row = u / halves + i, column = v / halves + j, first = i * halves * COLUMNS + j * halves;
                if (row >= to.height || column >= to.width) continue;
                Bytes above;
                if (item.narrow) {
                    Bytes x = load<Bytes>(narrow + first * WIDE);
                    for (int64_t k = 1; k < halves * halves; k++) {
                        const Bytes y = load<Bytes>(narrow + (first + k / 2 * COLUMNS + k % 2) * WIDE);
                        x = x < y ? y : x;
                    }
                    above = x > (int8_t)std::max(-128, std::min(127, t)) - Bytes{};
                } else {
                    HalfBytes both[2];
                    for (int half = 0; half < 2; half++) {
                        Shorts x = load<Shorts>(wide + first * 2 * WIDE + half * WIDE);
                        for (int64_t k = 1; k < halves * halves; k++) {
                            const Shorts y = load<Shorts>(wide + (first + k / 2 * COLUMNS + k % 2) * 2 * WIDE + half * WIDE);
                            x = x < y ? y : x;
                        }
                        const Shorts mask = x > (int16_t)std::max(-32768, std::min(32767, t)) - Shorts{};
                        both[half] = __builtin_convertvector(mask, HalfBytes);
                    }
                    std::memcpy(&above, both, WIDE);
                }
                above ^= turn - Bytes{};
                store(base + (row * to.width + column) * to.lanes, -1 - 2 * above);
            }
        return true;
    }

    // For `many` groups, from the present one on.
    void multiply(const Item &item, int64_t many) {
        if (plan.single) value(item.in).sign ? multiply_bits(item) : multiply_one(item);
        else value(item.in).sign ? multiply_bytes(item, many) : multiply_many(item, many);
    }

    // The outputs of a linear layer from their sums, of the g-th group from the present one on.
    template <class X>
    void finish_row(const Item &item, int64_t f, int64_t g, int64_t vector, X x) {
        group += g;
        x = finished(item, f, x, 0, 0, vector);
        const bool sign = value(item.out).sign;
        const int64_t size = sign ? 1 : 4;
        put(at(item.out) + (f * layout(item.out).lanes + vector * LANES) * size, x, sign);
        group -= g;
    }

    // Inputs of a block, those of all groups side by side in the buffer.
    void gather_inputs(const Item &item, int64_t first, int64_t inputs, int64_t many) {
        const int64_t pixel = plan.lanes * size_of(item.in);
        for (int64_t g = 0; g < many; g++, group++) {
            const char *from = at(item.in) + first * pixel;
            for (int64_t i = 0; i < inputs; i++)
                std::memcpy(buffer + (i * many + g) * pixel, from + i * pixel, pixel);
        }
        group -= many;
    }

    template <int COUNT, bool Valued>
    void add_rows(const Lists &lists, int64_t rows, int64_t pitch, int64_t done, bool begin) const {
        const uint16_t *places = lists.places.data();
        const float *values = lists.values.data();
        const uint32_t *starts = lists.starts.data();
        const char *x = buffer + done;
        char *to = sums + done;
        for (int64_t row = 0; row < rows; row++, starts += 2, to += pitch) {
            Floats sum[COUNT];
#pragma GCC unroll 8
            for (int i = 0; i < COUNT; i++) sum[i] = begin ? Floats{} : load<Floats>(to + i * WIDE);
            uint32_t k = starts[0];
            for (; k < starts[1]; k++) {
                const char *from = x + places[k] * pitch;
                const Floats weight = all(Valued ? values[k] : 1);
#pragma GCC unroll 8
                for (int i = 0; i < COUNT; i++) {
                    const Floats z = load<Floats>(from + i * WIDE);
                    sum[i] = Valued ? plus_product(sum[i], z, weight) : sum[i] + z;
                }
            }
            for (; k < starts[2]; k++)
#pragma GCC unroll 8
                for (int i = 0; i < COUNT; i++) sum[i] -= load<Floats>(x + places[k] * pitch + i * WIDE);
#pragma GCC unroll 8
            for (int i = 0; i < COUNT; i++) store(to + i * WIDE, sum[i]);
        }
    }

    void multiply_many(const Item &item, int64_t many) {
        const Operation &one = *item.operation;
        const int64_t rows = program.values[one.out].channels;
        const int64_t count = many * plan.vectors, pitch = count * WIDE;
        const std::vector<Lists> &blocks = item.lists[0];
        char *totals = sums + rows * pitch;
        for (size_t b = 0; b < blocks.size(); b++) {
            const int64_t first = b * SOME;
            gather_inputs(item, first, std::min(SOME, one.inputs - first), many);
            for (int64_t done = 0; done < count;) {
                const int64_t left = count - done, step = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
                const bool valued = !blocks[b].values.empty();
                const auto how = step == 8   ? valued ? &Runner::add_rows<8, true> : &Runner::add_rows<8, false>
                                 : step == 4 ? valued ? &Runner::add_rows<4, true> : &Runner::add_rows<4, false>
                                 : step == 2 ? valued ? &Runner::add_rows<2, true> : &Runner::add_rows<2, false>
                                 : valued    ? &Runner::add_rows<1, true>
                                             : &Runner::add_rows<1, false>;
                (this->*how)(blocks[b], rows, pitch, done * WIDE, first % INPUTS == 0);
                done += step;
            }
            if ((first + SOME) % INPUTS == 0 || b + 1 == blocks.size())
                for (int64_t i = 0; i < rows * pitch; i += WIDE)
                    store(totals + i, first < INPUTS ? load<Floats>(sums + i) : load<Floats>(totals + i) + load<Floats>(sums + i));
        }
        for (int64_t f = 0; f < rows; f++)
            for (int64_t g = 0; g < many; g++)
                for (int64_t w = 0; w < plan.vectors; w++)
                    finish_row(item, f, g, w, load<Floats>(totals + f * pitch + (g * plan.vectors + w) * WIDE));
    }

    template <int COUNT>
    void add_rows_of_bytes(const Lists &lists, int64_t rows, bool begin) const {
        const uint16_t *places = lists.places.data();
        for (int64_t row = 0; row < rows; row++) {
            Bytes sum[COUNT]{};
            uint32_t k = lists.starts[2 * row];
            for (; k < lists.starts[2 * row + 1]; k++)
                for (int i = 0; i < COUNT; i++) sum[i] += load<Bytes>(buffer + (places[k] * COUNT + i) * WIDE);
            for (; k < lists.starts[2 * row + 2]; k++)
                for (int i = 0; i < COUNT; i++) sum[i] -= load<Bytes>(buffer + (places[k] * COUNT + i) * WIDE);
            for (int i = 0; i < COUNT; i++) widen(sums + (row * COUNT + i) * 2 * WIDE, sum[i], begin);
        }
    }

    void multiply_bytes(const Item &item, int64_t many) {
        const Operation &one = *item.operation;
        const int64_t rows = program.values[one.out].channels;
        const std::vector<Lists> &blocks = item.lists[0];
        for (size_t b = 0; b < blocks.size(); b++) {  // sums of bytes are held within a block only
            const int64_t first = b * item.block;
            gather_inputs(item, first, std::min(item.block, one.inputs - first), many);
            if (many == 2) add_rows_of_bytes<2>(blocks[b], rows, b == 0);
            else add_rows_of_bytes<1>(blocks[b], rows, b == 0);
        }
        for (int64_t f = 0; f < rows; f++)
            for (int64_t g = 0; g < many; g++)
                for (int64_t w = 0; w < plan.vectors; w++) {
                    const char *sum = sums + (f * many + g) * 2 * WIDE + w * 2 * LANES;
                    finish_row(item, f, g, w, __builtin_convertvector(load<FewShorts>(sum), Floats));
                }
    }

    // One image: ABREAST rows at a time.
    void multiply_one(const Item &item) {
        const Operation &one = *item.operation;
        const int64_t rows = program.values[one.out].channels, some = over(rows, ABREAST), inputs = one.inputs;
        const int64_t g0 = some * team.rank / team.size, g1 = some * (team.rank + 1) / team.size;
        const std::vector<Lists> &blocks = item.lists[0];
        float *both = (float *)buffer, *total = (float *)sums;
        const float *x = (const float *)at(item.in);
        both[2 * INPUTS] = 0;
        for (size_t b = 0; b < blocks.size() && g0 < g1; b++) {
            const int64_t first = b * INPUTS, count = std::min(INPUTS, inputs - first);
            for (int64_t i = 0; i < count; i++) both[2 * i] = x[first + i], both[2 * i + 1] = -x[first + i];
            const uint16_t *places = blocks[b].places.data();
            const float *values = blocks[b].values.data();
            const bool valued = !blocks[b].values.empty();
            for (int64_t g = g0; g < g1; g++) {
                float sum[ABREAST] = {};
                for (uint32_t k = blocks[b].starts[g]; k < blocks[b].starts[g + 1]; k += ABREAST)
#pragma GCC unroll 8
                    for (int i = 0; i < ABREAST; i++) {
                        const float z = both[places[k + i]];
                        sum[i] = valued ? fused(sum[i], z, values[k + i]) : sum[i] + z;
                    }
                for (int i = 0; i < ABREAST; i++) total[g * ABREAST + i] = b ? total[g * ABREAST + i] + sum[i] : sum[i];
            }
        }
        for (int64_t f = g0 * ABREAST; f < std::min(rows, g1 * ABREAST); f++) finish_row(item, f, 0, 0, total[f]);
    }

    static float fused(float sum, float x, float y) {
#if defined(__FMA__)
        return __builtin_fmaf(x, y, sum);
#else
        return sum + x * y;
#endif
    }

    // One image's signs: a bit each.
    void multiply_bits(const Item &item) {
        const Operation &one = *item.operation;
        const int64_t rows = program.values[one.out].channels;
        uint64_t *bits = (uint64_t *)buffer;
        const int8_t *x = (const int8_t *)at(item.in);
        for (int64_t w = 0; w < one.words; w++) {
            uint64_t word = 0;
            for (int64_t i = 64 * w; i < std::min(64 * w + 64, one.inputs); i++) word |= (uint64_t)(x[i] < 0) << i % 64;
            bits[w] = word;
        }
        for (int64_t f = team.rank; f < rows; f += team.size) {
            const uint64_t *kept = one.kept + f * one.words, *negative = one.negative + f * one.words;
            int64_t all = 0, differ = 0;
            for (int64_t w = 0; w < one.words; w++) {
                all += __builtin_popcountll(kept[w]);
                differ += __builtin_popcountll((bits[w] ^ negative[w]) & kept[w]);
            }
            finish_row(item, f, 0, 0, (float)(all - 2 * differ));
        }
    }

    template <class X>
    void pool(const Item &item) {
        const Operation &one = *item.operation;
        const Layout &from = layout(item.in), &to = layout(item.out);
        const bool bytes = value(item.in).sign, sign = value(item.out).sign;
        const int64_t channels = value(item.in).channels, size = bytes ? 1 : 4, size_out = sign ? 1 : 4;
        const int64_t vectors = from.lanes == 1 ? 1 : plan.vectors, wide = std::is_same_v<X, float> ? 1 : LANES;
        for (int64_t c = team.rank; c < channels; c += team.size) {
            const char *plane = at(item.in) + c * from.plane * from.lanes * size;
            char *result = at(item.out) + c * to.plane * to.lanes * size_out;
            for (int64_t u = 0; u < to.height; u++)
                for (int64_t v = 0; v < to.width; v++) {
                    const bool within = one.inside;  // of patches: more rows than the map's windows are told
                    const int64_t y0 = within ? u * one.stride[0] : one.windows[0][2 * u];
                    const int64_t y1 = within ? y0 + one.stride[0] : one.windows[0][2 * u + 1];
                    const int64_t x0 = within ? v * one.stride[1] : one.windows[1][2 * v];
                    const int64_t x1 = within ? x0 + one.stride[1] : one.windows[1][2 * v + 1];
                    const float divisor = within ? one.divisors[0][0] * one.divisors[1][0]
                                                 : one.divisors[0][u] * one.divisors[1][v];
                    for (int64_t w = 0; w < vectors; w++) {
                        X sum{};
                        for (int64_t y = y0; y < y1; y++)
                            for (int64_t x = x0; x < x1; x++) {
                                const X z = got<X>(plane + ((y * from.width + x) * from.lanes + w * wide) * size, bytes);
                                if (!one.maximum) sum += z;
                                else if (y == y0 && x == x0) sum = z;
                                else sum = sum < z ? z : sum;
                            }
                        if (!one.maximum) sum = sum / divisor;
                        put(result + ((u * to.width + v) * to.lanes + w * wide) * size_out, finished(item, c, sum, u, v, w), sign);
                    }
                }
            clear_outside(item.out, c);
        }
    }

    template <class X>
    void point(const Item &item) {
        const Layout &from = layout(item.in), &to = layout(item.out);
        const bool bytes = value(item.in).sign, sign = value(item.out).sign;
        const int64_t channels = value(item.in).channels, size = sign ? 1 : 4, size_in = bytes ? 1 : 4;
        const int64_t wide = std::is_same_v<X, float> ? 1 : LANES, vectors = from.lanes == 1 ? 1 : plan.vectors;
        for (int64_t c = team.rank; c < channels; c += team.size) {
            for (int64_t i = 0; i < from.height; i++)
                for (int64_t j = 0; j < from.width; j++) {
                    const int64_t pixel = i * from.width + j;
                    for (int64_t w = 0; w < vectors; w++) {
                        const X x = got<X>(at(item.in) + ((c * from.plane + pixel) * from.lanes + w * wide) * size_in, bytes);
                        put(at(item.out) + ((c * to.plane + pixel) * to.lanes + w * wide) * size, finished(item, c, x, i, j, w), sign);
                    }
                }
            clear_outside(item.out, c);
        }
    }

    void choose(const Item &item) const {
        const Layout &to = layout(item.out);
        const int64_t size = size_of(item.out), bytes = to.lanes * size;
        for (int64_t c = team.rank; c < value(item.out).channels; c += team.size) {
            const int source = item.sources[c];
            const int64_t whole = to.height * to.width * bytes;
            char *result = at(item.out) + c * to.plane * bytes;
            if (source < 0) std::memset(result, 0, whole);
            else std::memcpy(result, at(source) + item.operation->source[2 * c + 1] * layout(source).plane * bytes, whole);
        }
    }
};

// ---- A program and the memory of its runs. One run at a time; others wait.

class Engine {
    Program program;
    std::unique_ptr<Plan> plans[2];
    std::mutex one_at_a_time;
    std::vector<Memory> memories;  // of threads: body, head, own
    int64_t held[3] = {0, 0, 0};

    const Plan &plan(bool single) {
        if (!plans[single]) plans[single].reset(new Plan(program, single));
        return *plans[single];
    }

    // Memory of `bodies` runs at once and `owns` threads. What is there is kept: its pages cost more than its use.
    void reserve(const Plan &plan, int64_t count) {
        const int64_t wanted[3] = {plan.body_bytes + 8 * plan.lanes, plan.bundle * plan.head_bytes + 8 * plan.lanes,
                                   over(plan.scratch_bytes, 64) * 64 + plan.sums_bytes};
        if ((int64_t)memories.size() < 3 * count || !std::equal(wanted, wanted + 3, held, std::less_equal<int64_t>())) {
            for (int i = 0; i < 3; i++) held[i] = std::max(held[i], wanted[i]);
            const int64_t all = std::max<int64_t>(count, memories.size() / 3);
            memories.clear();
            for (int64_t i = 0; i < all; i++)
                for (int64_t bytes : held) memories.push_back(memory(bytes));
        }
    }

  public:
    Engine(const void *from, int64_t size) : program(from, size) {}

    int64_t inputs() const { return size(program.values[program.in]); }
    int64_t outputs() const { return program.values[program.out].channels; }

    // y [images, outputs] of x [images, channels, height, width], both contiguous.
    void run(const float *x, float *y, int64_t images, int threads) {
        std::lock_guard<std::mutex> lock(one_at_a_time);
        if (images <= 0) return;
        threads = std::max(1, threads);
        const int64_t lanes = (program.bytes ? 4 : 1) * LANES, groups = over(images, lanes);
        // A patch at the border reads more than it has, and lists are walked for fewer pixels: alone an image is dearer.
        const bool alone = images < threads || 2 * over(images, threads) <= over(groups, threads) * lanes;
        const Plan &chosen = plan(alone);
        if (!alone) threads = (int)std::min<int64_t>(threads, groups);
        reserve(chosen, threads);
        if (alone && images < threads) {
            for (int64_t n = 0; n < images; n++) one(chosen, x + n * inputs(), y + n * outputs(), threads);
        } else if (alone) {
#pragma omp parallel for num_threads(threads) schedule(static)
            for (int64_t n = 0; n < images; n++) {
                Runner runner = of_thread(chosen, thread(), Team{});
                one(runner, x + n * inputs(), y + n * outputs());
            }
        } else {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
            for (int t = 0; t < threads; t++)
                many(chosen, of_thread(chosen, t, Team{}), x, y, images, groups * t / threads, groups * (t + 1) / threads);
        }
    }

  private:
    static int64_t size(const Value &x) { return x.channels * x.height * x.width; }
    static int thread() {
#if defined(_OPENMP)
        return omp_get_thread_num();
#else
        return 0;
#endif
    }
    Runner of_thread(const Plan &plan, int t, Team team) {
        const int shared = team.size > 1 ? 0 : t;
        return Runner(plan, memories[3 * shared].get(), memories[3 * shared + 1].get(), memories[3 * t + 2].get(), team);
    }

    void one(const Plan &plan, const float *x, float *y, [[maybe_unused]] int threads) {
        Meeting meeting;
#pragma omp parallel num_threads(threads)
        {
            Team team;
#if defined(_OPENMP)
            team = {omp_get_thread_num(), omp_get_num_threads(), &meeting};
#endif
            Runner runner = of_thread(plan, team.rank, team);
            one(runner, x, y);
        }
    }
    void one(Runner &runner, const float *x, float *y) const {
        const Plan &plan = runner.plan;
        const Value &image = program.values[program.in];
        const int64_t pixels = image.height * image.width, plane = plan.places[plan.input].layout.plane;
        for (int64_t c = runner.team.rank; c < image.channels; c += runner.team.size)
            std::memcpy(runner.at(plan.input) + c * plane * 4, x + c * pixels, pixels * 4);
        if (plan.items.empty() || plan.items[0].operation) runner.team.meet();  // else who turns a channel has it
        runner.run_body();
        if (runner.team.rank == 0) std::memcpy(y, runner.at(plan.output), outputs() * 4);
    }

    void many(const Plan &plan, Runner runner, const float *x, float *y, int64_t images, int64_t g0, int64_t g1) const {
        const Layout &in = plan.places[plan.input].layout;
        const int64_t of_channel = in.height * in.width, pixels = inputs();
        for (int64_t first = g0; first < g1; first += plan.bundle) {
            runner.groups = std::min(plan.bundle, g1 - first);
            for (runner.group = 0; runner.group < runner.groups; runner.group++) {
                const int64_t n0 = (first + runner.group) * plan.lanes, count = std::min(plan.lanes, images - n0);
                float *to = (float *)runner.at(plan.input);
                for (int64_t c = 0; c < pixels / of_channel; c++, to += in.plane * plan.lanes)
                    for (int64_t p = 0; p < of_channel; p += 16)  // as they lie side by side
                        for (int64_t lane = 0; lane < plan.lanes; lane++) {
                            const float *from = x + (n0 + lane) * pixels + c * of_channel;
                            for (int64_t i = p; i < std::min(p + 16, of_channel); i++)
                                to[i * plan.lanes + lane] = lane < count ? from[i] : 0;
                        }
                runner.run_body();
            }
            runner.run_head();
            for (runner.group = 0; runner.group < runner.groups; runner.group++) {
                const float *from = (const float *)runner.at(plan.output);
                const int64_t n0 = (first + runner.group) * plan.lanes, count = std::min(plan.lanes, images - n0);
                for (int64_t n = 0; n < count; n++)
                    for (int64_t f = 0; f < outputs(); f++) y[(n0 + n) * outputs() + f] = from[f * plan.lanes + n];
            }
        }
    }
};

}  // namespace inference

#if !defined(TICKET_PROGRAM)
extern "C" {
// nullptr for what is no program, or where there is no memory for it.
void *mpt_ticket_load(const void *from, int64_t size) {
    try {
        return new inference::Engine(from, size);
    } catch (const std::exception &) {
        return nullptr;
    }
}
void mpt_ticket_free(void *engine) { delete (inference::Engine *)engine; }
// 0, or 1 where there is no memory.
int mpt_ticket_run(void *engine, const float *x, float *y, int64_t images, int threads) {
    try {
        ((inference::Engine *)engine)->run(x, y, images, threads);
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}
}
#else
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <string>

// The file of weights, little-endian: 8 bytes that say what it is; the CRC-32 of all behind it, in 64 bits; channels,
// height, width, classes (32 bits each); mean and std of each channel (float32); a length (32 bits) and a name a class;
// zeros up to a multiple of 8; the program.
struct Weights {
    std::vector<char> content;
    uint32_t channels, height, width, classes;
    std::vector<float> mean, std;
    std::vector<std::string> names;
    size_t at = 16;

    explicit Weights(std::vector<char> of) : content(std::move(of)) {
        if (content.size() < 32 || std::memcmp(content.data(), "MPTCPP01", 8)) throw inference::Broken("no weights of a ticket");
        uint64_t told;
        uint32_t sum = ~0u;
        std::memcpy(&told, content.data() + 8, 8);
        for (size_t i = 16; i < content.size(); i++) {
            sum ^= (uint8_t)content[i];
            for (int bit = 0; bit < 8; bit++) sum = sum >> 1 ^ (sum & 1 ? 0xedb88320u : 0);
        }
        if ((uint32_t)~sum != told) throw inference::Broken("the weights are damaged");
        channels = next<uint32_t>(), height = next<uint32_t>(), width = next<uint32_t>(), classes = next<uint32_t>();
        for (std::vector<float> *values : {&mean, &std})
            for (uint32_t c = 0; c < channels; c++) values->push_back(next<float>());
        for (uint32_t i = 0; i < classes; i++) {
            const uint32_t length = next<uint32_t>();
            if (length > content.size() - at) throw inference::Broken("the weights are cut off");
            names.emplace_back(content.data() + at, length), at += length;
        }
        at = (at + 7) / 8 * 8;
        if (at > content.size()) throw inference::Broken("the weights are cut off");
    }
    size_t size() const { return (size_t)channels * height * width; }

  private:
    template <class T>
    T next() {
        if (content.size() < at + sizeof(T)) throw inference::Broken("the weights are cut off");
        T value;
        std::memcpy(&value, content.data() + at, sizeof(T)), at += sizeof(T);
        return value;
    }
};

std::vector<char> content_of(const char *name) {
    if (!std::filesystem::is_regular_file(name)) throw inference::Broken(std::string("cannot read ") + name);
    std::ifstream file(name, std::ios::binary);
    if (!file) throw inference::Broken(std::string("cannot read ") + name);
    return std::vector<char>(std::istreambuf_iterator<char>(file), {});
}

// An image as the network takes it: of float32 [channel, row, column] as it is, of bytes [row, column, channel] standardised.
std::vector<float> image_of(const Weights &weights, const std::vector<char> &raw, const char *name) {
    std::vector<float> image(weights.size());
    if (raw.size() == 4 * image.size()) {
        std::memcpy(image.data(), raw.data(), raw.size());
    } else if (raw.size() == image.size()) {
        const size_t pixels = (size_t)weights.height * weights.width;
        for (size_t c = 0; c < weights.channels; c++)
            for (size_t p = 0; p < pixels; p++)
                image[c * pixels + p] =
                    ((float)(uint8_t)raw[p * weights.channels + c] / 255 - weights.mean[c]) / weights.std[c];
    } else {
        throw inference::Broken(std::string(name) + " has " + std::to_string(raw.size()) + " bytes: an image is " +
                                std::to_string(image.size()) + " bytes [row, column, channel], or as many float32 numbers " +
                                "[channel, row, column]");
    }
    return image;
}

int main(int count, char **given) {
    const bool logits = count > 1 && std::string(given[1]) == "--logits";
    if (count - logits < 3) {
        std::fprintf(stderr, "usage: %s [--logits] WEIGHTS IMAGE...\n", given[0]);
        return 2;
    }
    try {
        const Weights weights(content_of(given[1 + logits]));
        inference::Engine engine(weights.content.data() + weights.at, (int64_t)(weights.content.size() - weights.at));
        if (engine.inputs() != (int64_t)weights.size() || engine.outputs() != weights.classes)
            throw inference::Broken("the weights are those of another program");
        int threads = 1;
#if defined(_OPENMP)
        threads = omp_get_max_threads();
#endif
        for (int i = 2 + logits; i < count; i++) {
            const std::vector<float> image = image_of(weights, content_of(given[i]), given[i]);
            std::vector<float> y(weights.classes);
            engine.run(image.data(), y.data(), 1, threads);
            if (logits) {
                for (float value : y) std::printf("%.9g ", value);
                std::printf("\n");
                continue;
            }
            const float most = *std::max_element(y.begin(), y.end());
            double sum = 0;
            for (float value : y) sum += std::exp((double)value - most);
            std::vector<size_t> order(y.size());
            std::iota(order.begin(), order.end(), 0);
            std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return y[a] > y[b]; });
            std::printf("%s:", given[i]);
            for (size_t k = 0; k < std::min<size_t>(5, order.size()); k++)
                std::printf("%s %s %.1f %%", k ? "," : "", weights.names[order[k]].c_str(),
                            100 * std::exp((double)y[order[k]] - most) / sum);
            std::printf("\n");
        }
        return 0;
    } catch (const std::bad_alloc &) {
        std::fprintf(stderr, "error: out of memory\n");
        return 1;
    } catch (const std::exception &fault) {
        std::fprintf(stderr, "error: %s\n", fault.what());
        return 2;
    }
}
#endif
