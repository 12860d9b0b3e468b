// For every even token of an item the odd token of largest cosine; ties to the lowest.
//
// Odd tokens, at length one, are packed in tiles of a few vectors, side by side. A group of even ones, at length one,
// meets tile after tile; every lane remembers its best product and the tile that had it, so that no N x N matrix
// appears. A result depends on no other item and not on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

#include "lanes.h"
#include "numbers.h"

namespace {

constexpr int kVectors = 2;                     // vectors of odd tokens in a tile
constexpr int kTile = kVectors * Lanes::count;  // odd tokens in a tile
constexpr int kRows = Lanes::registers / 4;     // even tokens that meet a tile together: half the registers are sums
constexpr int64_t kChunk = 16 * kRows;          // even tokens of one task
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Shape {
    int64_t items, count, width;
    int64_t even() const { return (count + 1) / 2; }
    int64_t odd() const { return count / 2; }
    int64_t tiles() const { return (odd() + kTile - 1) / kTile; }
    int64_t chunks() const { return (even() + kChunk - 1) / kChunk; }
};

// Writes the token at length one, `step` numbers apart; false, and zeros, if it has NaN or infinity.
template <class Number>
bool unit(const Number* token, int64_t width, float* to, int64_t step) {
    double square = 0;
#pragma omp simd reduction(+ : square)
    for (int64_t d = 0; d < width; ++d) square += double(widen(token[d])) * widen(token[d]);
    const bool finite = std::isfinite(square);
    const float norm = square > 0 ? float(std::sqrt(square)) : 1.0f;
    for (int64_t d = 0; d < width; ++d) to[d * step] = finite ? widen(token[d]) / norm : 0.0f;
    return finite;
}

// Odd tokens of all items: numbers [items][tiles][width][kTile]; bias [items][tiles][kTile], -inf where none counts.
struct Packed {
    std::vector<float> numbers, bias;
};

template <class Number>
void pack(const Number* metric, const uint8_t* counted, const Shape& shape, int64_t task, Packed& packed) {
    const int64_t item = task / shape.tiles(), first = task % shape.tiles() * kTile;
    for (int64_t lane = 0; lane < kTile && first + lane < shape.odd(); ++lane) {
        const int64_t token = item * shape.count + 2 * (first + lane) + 1;
        float* to = packed.numbers.data() + task * shape.width * kTile + lane;
        if (counted[token] && unit(metric + token * shape.width, shape.width, to, kTile))
            packed.bias[task * kTile + lane] = 0.0f;
    }
}

struct Best {
    float product[kTile];
    int32_t tile[kTile];
};

// kRows rows meet one tile of an item.
void meet(const float* rows, const float* tile, const float* bias, int64_t width, int32_t number, Best* best) {
    Lanes::Float sum[kRows][kVectors];
    for (int v = 0; v < kVectors; ++v)
        for (int r = 0; r < kRows; ++r) sum[r][v] = Lanes::load(bias + v * Lanes::count);
    for (int64_t d = 0; d < width; ++d) {
        Lanes::Float odd[kVectors];
        for (int v = 0; v < kVectors; ++v) odd[v] = Lanes::load(tile + d * kTile + v * Lanes::count);
        for (int r = 0; r < kRows; ++r) {
            const Lanes::Float even = Lanes::all(rows[r * width + d]);
            for (int v = 0; v < kVectors; ++v) sum[r][v] = Lanes::fused(even, odd[v], sum[r][v]);
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) {
            Lanes::Float product = Lanes::load(best[r].product + v * Lanes::count);
            Lanes::Int place = Lanes::load(best[r].tile + v * Lanes::count);
            Lanes::keep_larger(product, place, sum[r][v], Lanes::all(number));
            Lanes::store(best[r].product + v * Lanes::count, product);
            Lanes::store(best[r].tile + v * Lanes::count, place);
        }
}

void take_winner(const Best& best, int64_t& partner, float& product) {
    partner = 0;
    product = -kInfinity;
    for (int lane = 0; lane < kTile; ++lane) {
        const int64_t index = int64_t(best.tile[lane]) * kTile + lane;
        const float value = best.product[lane];
        if (value > product || (value == product && value > -kInfinity && index < partner)) {
            partner = index;
            product = value;
        }
    }
}

struct Task {
    std::vector<float> rows;   // [kChunk][width]
    std::vector<char> counts;  // [kChunk]
    std::vector<Best> best;    // [kChunk]
    explicit Task(const Shape& shape) : rows(kChunk * shape.width), counts(kChunk), best(kChunk) {}
};

template <class Number>
void search(const Number* metric, const uint8_t* counted, const Shape& shape, int64_t number, const Packed& packed,
            Task& task, int64_t* partner, float* product) {
    const int64_t item = number / shape.chunks(), first = number % shape.chunks() * kChunk, width = shape.width;
    const int64_t count = std::min(kChunk, shape.even() - first);
    std::fill(task.rows.begin(), task.rows.end(), 0.0f);
    for (int64_t r = 0; r < count; ++r) {
        const int64_t token = item * shape.count + 2 * (first + r);
        task.counts[r] = counted[token] && unit(metric + token * width, width, task.rows.data() + r * width, 1);
    }
    for (auto& best : task.best) {
        std::fill(best.product, best.product + kTile, -kInfinity);
        std::fill(best.tile, best.tile + kTile, 0);
    }
    for (int64_t t = 0; t < shape.tiles(); ++t) {
        const int64_t tile = item * shape.tiles() + t;
        for (int64_t r = 0; r < count; r += kRows)
            meet(task.rows.data() + r * width, packed.numbers.data() + tile * width * kTile,
                 packed.bias.data() + tile * kTile, width, int32_t(t), task.best.data() + r);
    }
    for (int64_t r = 0; r < count; ++r) {
        const int64_t out = item * shape.even() + first + r;
        if (task.counts[r])
            take_winner(task.best[r], partner[out], product[out]);
        else
            partner[out] = 0, product[out] = -kInfinity;
    }
}

template <class Number>
void match(const Number* metric, const uint8_t* counted, int64_t* partner, float* product, const Shape& shape,
           int64_t threads) {
    const int64_t tiles = shape.items * shape.tiles(), chunks = shape.items * shape.chunks();
    Packed packed{std::vector<float>(tiles * shape.width * kTile), std::vector<float>(tiles * kTile, -kInfinity)};
    std::vector<Task> own(std::max<int64_t>(1, std::min(threads, chunks)), Task(shape));
#pragma omp parallel for num_threads(int(own.size())) schedule(static)
    for (int64_t task = 0; task < tiles; ++task) pack(metric, counted, shape, task, packed);
#pragma omp parallel for num_threads(int(own.size())) schedule(static)
    for (int64_t slot = 0; slot < int64_t(own.size()); ++slot)
        for (int64_t chunk = slot; chunk < chunks; chunk += int64_t(own.size()))
            search(metric, counted, shape, chunk, packed, own[slot], partner, product);
}

}  // namespace

// metric [items, count, width] of one element type, counted [items, count] -> partner and product
// [items, (count + 1) / 2], 0 and -inf where there is none. Returns 0, or 1 if memory ran out.
extern "C" int bipartite_match(const void* metric, const uint8_t* counted, int64_t* partner, float* product,
                               int64_t element, int64_t items, int64_t count, int64_t width, int64_t threads) try {
    const Shape shape{items, count, width};
    const auto run = [&](auto number) {
        using Number = decltype(number);
        match(static_cast<const Number*>(metric), counted, partner, product, shape, threads);
    };
    if (element == kFloat32) run(float());
    if (element == kBFloat16) run(BFloat16());
    if (element == kFloat16) run(Float16());
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
