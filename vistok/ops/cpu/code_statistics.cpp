// Of every code: how many rows it won, their sum, and their squared distance to it.
//
// Each thread owns a range of codes and walks all rows in order, so the result does not depend on the number of
// threads.
#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

namespace {

double squared_distance(const float* a, const float* b, int64_t width) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < width; ++d) {
        const double difference = double(a[d]) - double(b[d]);
        sum += difference * difference;
    }
    return sum;
}

}  // namespace

// x [rows, width], ids [rows] in -1..count-1 (-1: no code), codes [count, width] -> counts [count], sums [count, width]
// and error [1]; counts and sums come in as zeros. Returns 0, or 1 if memory ran out.
extern "C" int code_statistics(const float* x, const int64_t* ids, const float* codes, int64_t* counts, float* sums,
                               double* error, int64_t rows, int64_t count, int64_t width, int64_t threads) try {
    std::vector<double> errors(count);
    const int64_t slots = std::max<int64_t>(1, std::min(threads, count)), share = (count + slots - 1) / slots;
#pragma omp parallel for num_threads(int(slots)) schedule(static)
    for (int64_t slot = 0; slot < slots; ++slot)
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t id = ids[row];
            if (id < slot * share || id >= (slot + 1) * share) continue;
            const float* values = x + row * width;
            float* sum = sums + id * width;
            for (int64_t d = 0; d < width; ++d) sum[d] += values[d];
            errors[id] += squared_distance(values, codes + id * width, width);
            ++counts[id];
        }
    *error = 0;
    for (const double one : errors) *error += one;
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
