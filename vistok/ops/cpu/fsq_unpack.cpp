// The levels of every id, as codes.
#include <algorithm>
#include <cstdint>

// ids [rows] (-1: no code, its channels are 0), levels [width] -> codes [rows, width]. Returns 0.
extern "C" int fsq_unpack(const int64_t* ids, const int64_t* levels, float* codes, int64_t rows, int64_t width,
                          int64_t threads) {
    const int slots = int(std::max<int64_t>(1, std::min(threads, rows / 128)));
#pragma omp parallel for num_threads(slots) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        float* code = codes + row * width;
        uint64_t left = uint64_t(std::max<int64_t>(ids[row], 0));
        for (int64_t d = 0; d < width; ++d) {
            const uint64_t level = uint64_t(levels[d]);
            const float scale = float(level / 2);
            code[d] = ids[row] < 0 ? 0.0f : (float(left % level) - scale) / scale;
            left /= level;
        }
    }
    return 0;
}
