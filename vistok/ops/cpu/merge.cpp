// Weighted mean of the rows that share a slot, and the sum of their weights.
//
// Rows of a slot are added in ascending order, one rounding for each product and each sum, so that the result is that
// of the torch code to the bit, for any number of threads. The only row of a slot is copied.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "huge_pages.h"
#include "numbers.h"

namespace {

constexpr int64_t kColumns = 512;  // running sums of a row, kept in the nearest cache

// To the nearest, ties to even.
void narrow(float value, float& to) { to = value; }

void narrow(float value, BFloat16& to) {
    const uint32_t bits = as_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    to.bits = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : rounded);
}

void narrow(float value, Float16& to) {
    const uint32_t bits = as_bits(value), magnitude = bits & 0x7fffffffu;
    // Below 2^-14 the sum with 1/2 has the spacing of the smallest half number: adding rounds.
    const uint32_t small = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);
    const uint32_t normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
    const uint32_t finite = magnitude < 0x38800000u ? small : std::min(normal, 0x7c00u);
    to.bits = uint16_t((bits >> 16 & 0x8000u) | (magnitude > 0x7f800000u ? 0x7e00u : finite));
}

struct Shape {
    int64_t items, slots, width, count, item_stride, slot_stride, threads;
};

// Tokens of every slot in ascending order: those of slot s of all items * count are order[starts[s]..starts[s + 1]).
struct Members {
    std::vector<int64_t> starts, order;
};

Members members_of(const int64_t* slot, const Shape& shape) {
    Members members{std::vector<int64_t>(shape.items * shape.count + 1), {}};
    const int64_t tokens = shape.items * shape.slots;
    const auto target = [&](int64_t token) { return token / shape.slots * shape.count + slot[token]; };
    for (int64_t token = 0; token < tokens; ++token)
        if (slot[token] >= 0) ++members.starts[target(token) + 1];
    for (int64_t s = 0; s < shape.items * shape.count; ++s) members.starts[s + 1] += members.starts[s];
    members.order.resize(members.starts.back());
    std::vector<int64_t> next(members.starts);
    for (int64_t token = 0; token < tokens; ++token)
        if (slot[token] >= 0) members.order[next[target(token)]++] = token;
    return members;
}

template <class Number>
void add(const Number* row, float weight, float* sum, int64_t width) {
    for (int64_t d = 0; d < width; ++d) sum[d] += weight * widen(row[d]);
}

template <class Number>
void mean(const Number* x, const float* sizes, const int64_t* tokens, int64_t count, float total, Number* out,
          const Shape& shape) {
    const auto row = [&](int64_t token) {
        return x + token / shape.slots * shape.item_stride + token % shape.slots * shape.slot_stride;
    };
    if (count == 1 && total != 0) {
        std::memcpy(out, row(tokens[0]), size_t(shape.width) * sizeof(Number));
        return;
    }
    if (total == 0) {
        std::memset(out, 0, size_t(shape.width) * sizeof(Number));
        return;
    }
    for (int64_t begin = 0; begin < shape.width; begin += kColumns) {
        const int64_t width = std::min(kColumns, shape.width - begin);
        float sum[kColumns] = {};
        for (int64_t i = 0; i < count; ++i) add(row(tokens[i]) + begin, sizes[tokens[i]], sum, width);
        for (int64_t d = 0; d < width; ++d) narrow(sum[d] / total, out[begin + d]);
    }
}

template <class Number>
void merge_all(const Number* x, const float* sizes, Number* out, float* totals, const Members& members,
               const Shape& shape) {
    prefer_huge_pages(out, shape.items * shape.count * shape.width * int64_t(sizeof(Number)));
#pragma omp parallel for num_threads(int(shape.threads)) schedule(static)
    for (int64_t s = 0; s < shape.items * shape.count; ++s) {
        const int64_t first = members.starts[s], count = members.starts[s + 1] - first;
        const int64_t* tokens = members.order.data() + first;
        float total = 0;
        for (int64_t i = 0; i < count; ++i) total += sizes[tokens[i]];
        totals[s] = total;
        mean(x, sizes, tokens, count, total, out + s * shape.width, shape);
    }
}

}  // namespace

// x [items, slots, width] of one element type with strides in numbers, slot [items, slots] in -1..count-1, sizes
// [items, slots] -> out [items, count, width], totals [items, count]. Returns 0, or 1 if memory ran out.
extern "C" int merge(const void* x, const int64_t* slot, const float* sizes, void* out, float* totals, int64_t element,
                     int64_t items, int64_t slots, int64_t width, int64_t count, int64_t item_stride,
                     int64_t slot_stride, int64_t threads) try {
    const Shape shape{items, slots, width, count, item_stride, slot_stride, threads};
    const Members members = members_of(slot, shape);
    const auto run = [&](auto number) {
        using Number = decltype(number);
        merge_all(static_cast<const Number*>(x), sizes, static_cast<Number*>(out), totals, members, shape);
    };
    if (element == kFloat32) run(float());
    if (element == kBFloat16) run(BFloat16());
    if (element == kFloat16) run(Float16());
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
