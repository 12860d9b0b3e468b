// Attention weights of a few query rows over all keys, and their sum over heads and rows.
//
// A task is one item, one key head and up to kRows of the query rows that share it: its scores stay in cache while
// keys are read once, where they lie. Few rows multiply each key along the width; more rows meet keys that are packed
// side by side first. Softmax then runs along each row. Tasks and the order of sums do not depend on the number of
// threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

#include "lanes.h"
#include "numbers.h"

namespace {

constexpr int64_t kRows = 64;                       // query rows of a task
constexpr int64_t kFew = 8;                        // up to here packing keys costs more than it saves
constexpr int kVectors = 2;                         // vectors of keys in a tile
constexpr int kTile = kVectors * Lanes::count;      // keys in a tile
constexpr int kBlock = Lanes::registers / 4;        // rows that meet a tile together: half the registers are sums
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// items, heads, key heads, query rows per head, keys, width; where a key starts; the columns that are summed.
struct Shape {
    int64_t items, heads, groups, rows, keys, width, item_stride, group_stride, key_stride, first, stop;
    int64_t rows_of_group() const { return heads / groups * rows; }
    int64_t blocks() const { return (rows_of_group() + kRows - 1) / kRows; }
    int64_t columns() const { return stop - first; }
    // Whole tiles, and one vector more: rows a power of two apart would share the same few places of a cache.
    int64_t padded_keys() const { return (keys + kTile - 1) / kTile * kTile + Lanes::count; }
};

struct Inputs {
    const float* queries;   // [items, heads, rows, width], scaled
    const int64_t* last;    // [items, rows]: last key that a row may see, -1 if it sees none
    const char* allowed;    // [items, keys]
};

struct Task {
    const float* queries;   // [rows, width]
    int64_t rows, limit;    // no row sees keys from limit on
    int64_t last[kRows];
    const char* allowed;
    float* scores;          // [rows, stride]
    int64_t stride;
};

// exp(x), to about one unit in the last place; 0 below -87.
inline float exponential(float x) {
    const float magic = 12582912.0f;  // adding it rounds to a whole number, which its last bits then hold
    const float bounded = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float shifted = fused(bounded, 1.44269504f, magic), whole = shifted - magic;
    const float rest = fused(whole, 2.12194440e-4f, fused(whole, -0.693359375f, bounded));
    float sum = 1.0f / 5040;
    sum = fused(sum, rest, 1.0f / 720);
    sum = fused(sum, rest, 1.0f / 120);
    sum = fused(sum, rest, 1.0f / 24);
    sum = fused(sum, rest, 1.0f / 6);
    sum = fused(sum, rest, 0.5f);
    sum = fused(sum, rest, 1.0f);
    sum = fused(sum, rest, 1.0f);
    const float value = sum * as_float((as_bits(shifted) + 127u) << 23);
    return x < -87.0f ? 0.0f : x > 88.0f ? kInfinity : value;
}

// Dot products of one key with kCount rows.
template <int kCount, class Number>
void multiply_few(const Number* key, const float* rows, int64_t width, float* out, int64_t out_stride) {
    const float *a = rows, *b = a + (kCount > 1) * width, *c = b + (kCount > 2) * width, *d = c + (kCount > 3) * width;
    float sum_a = 0, sum_b = 0, sum_c = 0, sum_d = 0;
#pragma omp simd reduction(+ : sum_a, sum_b, sum_c, sum_d)
    for (int64_t i = 0; i < width; ++i) {
        const float value = widen(key[i]);
        sum_a = fused(a[i], value, sum_a);
        if (kCount > 1) sum_b = fused(b[i], value, sum_b);
        if (kCount > 2) sum_c = fused(c[i], value, sum_c);
        if (kCount > 3) sum_d = fused(d[i], value, sum_d);
    }
    out[0] = sum_a;
    if (kCount > 1) out[out_stride] = sum_b;
    if (kCount > 2) out[2 * out_stride] = sum_c;
    if (kCount > 3) out[3 * out_stride] = sum_d;
}

template <class Number>
void scores_of_few(const Task& task, const Number* keys, int64_t key_stride, int64_t width) {
    for (int64_t j = 0; j < task.limit; ++j) {
        if (!task.allowed[j]) continue;
        const Number* key = keys + j * key_stride;
        for (int64_t r = 0; r < task.rows; r += 4) {
            const float* rows = task.queries + r * width;
            float* out = task.scores + r * task.stride + j;
            switch (std::min<int64_t>(4, task.rows - r)) {
                case 1: multiply_few<1>(key, rows, width, out, task.stride); break;
                case 2: multiply_few<2>(key, rows, width, out, task.stride); break;
                case 3: multiply_few<3>(key, rows, width, out, task.stride); break;
                default: multiply_few<4>(key, rows, width, out, task.stride);
            }
        }
    }
}

// kCount rows and one tile of keys.
template <int kCount>
void multiply_tile(const float* tile, const float* rows, int64_t width, float* out, int64_t out_stride) {
    Lanes::Float sums[kCount][kVectors];
    for (auto& sum : sums) std::fill(sum, sum + kVectors, Lanes::all(0.0f));
    for (int64_t d = 0; d < width; ++d) {
        Lanes::Float keys[kVectors];
        for (int v = 0; v < kVectors; ++v) keys[v] = Lanes::load(tile + d * kTile + v * Lanes::count);
        for (int r = 0; r < kCount; ++r) {
            const Lanes::Float query = Lanes::all(rows[r * width + d]);
            for (int v = 0; v < kVectors; ++v) sums[r][v] = Lanes::fused(query, keys[v], sums[r][v]);
        }
    }
    for (int r = 0; r < kCount; ++r)
        for (int v = 0; v < kVectors; ++v) Lanes::store(out + r * out_stride + v * Lanes::count, sums[r][v]);
}

// tile: room for [width][kTile].
template <class Number>
void scores_of_many(const Task& task, const Number* keys, int64_t key_stride, int64_t width, float* tile) {
    for (int64_t j = 0; j < task.limit; j += kTile) {
        for (int64_t lane = 0; lane < kTile; ++lane) {
            const Number* key = keys + std::min(j + lane, task.limit - 1) * key_stride;
            for (int64_t d = 0; d < width; ++d) tile[d * kTile + lane] = widen(key[d]);
        }
        int64_t r = 0;
        for (; r + kBlock <= task.rows; r += kBlock)
            multiply_tile<kBlock>(tile, task.queries + r * width, width, task.scores + r * task.stride + j,
                                  task.stride);
        for (; r < task.rows; ++r)
            multiply_tile<1>(tile, task.queries + r * width, width, task.scores + r * task.stride + j, task.stride);
    }
}

// -inf for every key that a row must not see, whatever its score; the row is then whole tiles.
void hide(const Task& task) {
    for (int64_t r = 0; r < task.rows; ++r) {
        float* scores = task.scores + r * task.stride;
        for (int64_t j = 0; j <= task.last[r]; ++j) scores[j] = task.allowed[j] ? scores[j] : -kInfinity;
        std::fill(scores + task.last[r] + 1, scores + (task.limit + kTile - 1) / kTile * kTile, -kInfinity);
    }
}

float largest(const float* values, int64_t count) {
    Lanes::Float best = Lanes::all(-kInfinity);
    for (int64_t j = 0; j < count; j += Lanes::count) best = Lanes::larger(Lanes::load(values + j), best);
    float lanes[Lanes::count];
    Lanes::store(lanes, best);
    return *std::max_element(lanes, lanes + Lanes::count);
}

// In place, exp(scores - shift); returns their sum.
float exponentials(float* scores, int64_t count, float shift) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; ++j) {
        scores[j] = exponential(scores[j] - shift);
        sum += scores[j];
    }
    return sum;
}

// Scores of row r become exponentials; returns what they are to be multiplied by. lse: in if known, else out.
float soften(const Task& task, int64_t r, bool known, float* lse) {
    float* scores = task.scores + r * task.stride;
    const bool sees = task.last[r] >= 0;
    if (known) {
        exponentials(scores, task.limit, sees ? *lse : 0.0f);
        return sees ? 1.0f : 0.0f;
    }
    const float top = sees ? largest(scores, task.limit) : 0.0f;
    const float sum = exponentials(scores, task.limit, top);
    *lse = sees ? top + std::log(sum) : -kInfinity;
    return sees ? 1.0f / sum : 0.0f;
}

struct Scratch {
    std::vector<float> scores, tile;
    explicit Scratch(const Shape& shape)
        : scores(std::min(kRows, shape.rows_of_group()) * shape.padded_keys()), tile(shape.width * kTile) {}
};

Task task_of(const Shape& shape, const Inputs& in, int64_t item, int64_t group, int64_t block, Scratch& scratch) {
    const int64_t begin = block * kRows, size = shape.rows_of_group();
    Task task{in.queries + ((item * shape.groups + group) * size + begin) * shape.width,
              std::min(kRows, size - begin),
              0,
              {},
              in.allowed + item * shape.keys,
              scratch.scores.data(),
              shape.padded_keys()};
    for (int64_t r = 0; r < task.rows; ++r) {
        task.last[r] = in.last[item * shape.rows + (begin + r) % shape.rows];
        task.limit = std::max(task.limit, task.last[r] + 1);
    }
    return task;
}

// lse [rows of the task], weights [rows of the task, columns] or null, sums [columns].
void soften_and_sum(const Shape& shape, const Task& task, bool known, float* lse, float* weights, float* sums) {
    const int64_t columns = shape.columns(), seen = std::max<int64_t>(0, std::min(shape.stop, task.limit) - shape.first);
    std::fill(sums, sums + columns, 0.0f);
    for (int64_t r = 0; r < task.rows; ++r) {
        const float factor = soften(task, r, known, lse + r);
        const float* row = task.scores + r * task.stride + shape.first;
        if (task.last[r] >= 0)
            for (int64_t c = 0; c < seen; ++c) sums[c] += row[c] * factor;
        if (!weights) continue;
        for (int64_t c = 0; c < seen; ++c) weights[r * columns + c] = row[c] * factor;
        std::fill(weights + r * columns + seen, weights + (r + 1) * columns, 0.0f);
    }
}

template <class Number>
void run(const Shape& shape, const Inputs& in, const Number* keys, bool known, float* lse, float* weights,
         float* partial, std::vector<Scratch>& own) {
    const int64_t blocks = shape.blocks(), slots = int64_t(own.size()), tasks = shape.items * shape.groups * blocks;
#pragma omp parallel for num_threads(int(slots)) schedule(static)
    for (int64_t slot = 0; slot < slots; ++slot)
        for (int64_t t = slot; t < tasks; t += slots) {
            const int64_t block = t % blocks, group = t / blocks % shape.groups, item = t / blocks / shape.groups;
            const Task task = task_of(shape, in, item, group, block, own[slot]);
            const Number* from = keys + item * shape.item_stride + group * shape.group_stride;
            if (task.rows <= kFew)
                scores_of_few(task, from, shape.key_stride, shape.width);
            else
                scores_of_many(task, from, shape.key_stride, shape.width, own[slot].tile.data());
            hide(task);
            const int64_t row = (item * shape.groups + group) * shape.rows_of_group() + block * kRows;
            soften_and_sum(shape, task, known, lse + row, weights ? weights + row * shape.columns() : nullptr,
                           partial + t * shape.columns());
        }
}

}  // namespace

// queries [items, heads, rows, width], keys of one element type, last [items, rows], allowed [items, keys] ->
// total [items, columns], lse [items, heads, rows] (which comes in if known), weights [items, heads, rows, columns] or
// null. Returns 0, or 1 if memory ran out.
extern "C" int attention_rows(const float* queries, const void* keys, const int64_t* last, const char* allowed,
                              float* total, float* lse, float* weights, int64_t known, int64_t element, int64_t items,
                              int64_t heads, int64_t groups, int64_t rows, int64_t count, int64_t width,
                              int64_t item_stride, int64_t group_stride, int64_t key_stride, int64_t first,
                              int64_t stop, int64_t threads) try {
    const Shape shape{items,       heads,        groups,     rows,  count, width,
                      item_stride, group_stride, key_stride, first, stop};
    const Inputs in{queries, last, allowed};
    const int64_t each = groups * shape.blocks(), columns = shape.columns();
    std::vector<float> partial(items * each * columns);
    std::vector<Scratch> own(std::max<int64_t>(1, std::min(threads, items * each)), Scratch(shape));
    const auto start = [&](auto number) {
        run(shape, in, static_cast<const decltype(number)*>(keys), known, lse, weights, partial.data(), own);
    };
    if (element == kFloat32) start(float());
    if (element == kBFloat16) start(BFloat16());
    if (element == kFloat16) start(Float16());
    std::fill(total, total + items * columns, 0.0f);
    for (int64_t t = 0; t < items * each; ++t)
        for (int64_t c = 0; c < columns; ++c) total[t / each * columns + c] += partial[t * columns + c];
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
