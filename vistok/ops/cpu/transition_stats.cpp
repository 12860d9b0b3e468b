// |a|^2, |b|^2 and a.b of every pair of rows, in one pass over both.
#include <cstdint>

#include "numbers.h"

namespace {

struct Rows {
    int64_t count, width, a_stride, b_stride, threads;
};

template <class Number>
void stats(const Number* a, const Number* b, float* a_squared, float* b_squared, float* dot, const Rows& rows) {
#pragma omp parallel for num_threads(int(rows.threads)) schedule(static)
    for (int64_t row = 0; row < rows.count; ++row) {
        const Number *x = a + row * rows.a_stride, *y = b + row * rows.b_stride;
        float xx = 0, yy = 0, xy = 0;
#pragma omp simd reduction(+ : xx, yy, xy)
        for (int64_t d = 0; d < rows.width; ++d) {
            const float u = widen(x[d]), v = widen(y[d]);
            xx = fused(u, u, xx);
            yy = fused(v, v, yy);
            xy = fused(u, v, xy);
        }
        a_squared[row] = xx;
        b_squared[row] = yy;
        dot[row] = xy;
    }
}

}  // namespace

// a, b [count, width] of one element type, rows a_stride and b_stride numbers apart -> three times [count].
extern "C" int transition_stats(const void* a, const void* b, float* a_squared, float* b_squared, float* dot,
                                int64_t element, int64_t count, int64_t width, int64_t a_stride, int64_t b_stride,
                                int64_t threads) {
    const Rows rows{count, width, a_stride, b_stride, threads};
    const auto run = [&](auto number) {
        using Number = decltype(number);
        stats(static_cast<const Number*>(a), static_cast<const Number*>(b), a_squared, b_squared, dot, rows);
    };
    if (element == kFloat32) run(float());
    if (element == kBFloat16) run(BFloat16());
    if (element == kFloat16) run(Float16());
    return 0;
}
