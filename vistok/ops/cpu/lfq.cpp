// The sign of every channel, as a code and as a bit of the id.
#include <algorithm>
#include <cstdint>

// z [rows, width] of at most 62 channels, magnitude [1], msb: whether channel 0 is the highest bit
// -> codes [rows, width] of -magnitude and magnitude, ids [rows]. Returns 0.
extern "C" int lfq(const float* z, const float* magnitude, float* codes, int64_t* ids, int64_t rows, int64_t width,
                   int64_t msb, int64_t threads) {
    const int slots = int(std::max<int64_t>(1, std::min(threads, rows / 128)));
    const float high = *magnitude, low = -high;
    const int64_t first = msb ? width - 1 : 0, step = msb ? -1 : 1;
#pragma omp parallel for num_threads(slots) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const float* values = z + row * width;
        float* code = codes + row * width;
        int64_t id = 0;
#pragma omp simd reduction(| : id)
        for (int64_t d = 0; d < width; ++d) {
            code[d] = values[d] > 0 ? high : low;
            id |= int64_t(values[d] > 0) << (first + step * d);
        }
        ids[row] = id;
    }
    return 0;
}
