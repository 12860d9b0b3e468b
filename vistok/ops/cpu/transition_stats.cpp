// |a|^2, |b|^2 and a.b of every pair of rows, in one pass over both.
#include <cstdint>
#include <cstring>

#include "reductions.h"
#include "wide.h"

namespace {

struct Rows {
    int64_t count, width, a_stride, b_stride, threads;
};

struct Sums {
    Lanes::Float xx = Lanes::all(0.0f), yy = Lanes::all(0.0f), xy = Lanes::all(0.0f);

    template <class Number>
    void add(const Number* x, const Number* y) {
        const Lanes::Float u = wide(x), v = wide(y);
        xx = Lanes::fused(u, u, xx);
        yy = Lanes::fused(v, v, yy);
        xy = Lanes::fused(u, v, xy);
    }
};

template <class Number>
void stats(const Number* a, const Number* b, float* a_squared, float* b_squared, float* dot, const Rows& rows) {
    const int64_t whole = rows.width / Lanes::count * Lanes::count, rest = rows.width - whole;
#pragma omp parallel for num_threads(int(rows.threads)) schedule(static)
    for (int64_t row = 0; row < rows.count; ++row) {
        const Number *x = a + row * rows.a_stride, *y = b + row * rows.b_stride;
        Sums sums;
        for (int64_t d = 0; d < whole; d += Lanes::count) sums.add(x + d, y + d);
        if (rest) {
            Number u[Lanes::count] = {}, v[Lanes::count] = {};
            std::memcpy(u, x + whole, size_t(rest) * sizeof(Number));
            std::memcpy(v, y + whole, size_t(rest) * sizeof(Number));
            sums.add(u, v);
        }
        a_squared[row] = sum_of_lanes(sums.xx);
        b_squared[row] = sum_of_lanes(sums.yy);
        dot[row] = sum_of_lanes(sums.xy);
    }
}

}  // namespace

// a, b [count, width] of one element type, rows a_stride and b_stride numbers apart -> out [3, count].
extern "C" int transition_stats(const void* a, const void* b, float* out, int64_t element, int64_t count, int64_t width,
                                int64_t a_stride, int64_t b_stride, int64_t threads) {
    const Rows rows{count, width, a_stride, b_stride, threads};
    const auto run = [&](auto number) {
        using Number = decltype(number);
        stats(static_cast<const Number*>(a), static_cast<const Number*>(b), out, out + count, out + 2 * count, rows);
    };
    if (element == kFloat32) run(float());
    if (element == kBFloat16) run(BFloat16());
    if (element == kFloat16) run(Float16());
    return 0;
}
