// The bits of every id, as codes.
#include <algorithm>
#include <cstdint>

// ids [rows] (-1: no code, its channels are 0), magnitude [1], msb: whether channel 0 is the highest bit
// -> codes [rows, width] of -magnitude and magnitude. Returns 0.
extern "C" int lfq_unpack(const int64_t* ids, const float* magnitude, float* codes, int64_t rows, int64_t width,
                          int64_t msb, int64_t threads) {
    const int slots = int(std::max<int64_t>(1, std::min(threads, rows / 128)));
    const int64_t first = msb ? width - 1 : 0, step = msb ? -1 : 1;
#pragma omp parallel for num_threads(slots) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t id = ids[row];
        const float high = id < 0 ? 0.0f : *magnitude, low = -high + 0.0f;
        float* code = codes + row * width;
#pragma omp simd
        for (int64_t d = 0; d < width; ++d) code[d] = (id >> (first + step * d)) & 1 ? high : low;
    }
    return 0;
}
