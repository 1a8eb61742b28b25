// The best token of each row of logits, and whether the row is finite.
#include <cstdint>

#include "parallel.h"
#include "vec.h"

using namespace weft;

extern "C" {

// logits [num_rows, vocab]; tokens: the first of the largest; is_finite: 1 where all of the row is.
void weft_greedy(const float* logits, int64_t num_rows, int64_t vocab, int64_t* tokens, uint8_t* is_finite,
                 int32_t threads) {
#pragma omp parallel for num_threads(num_threads(num_rows* vocab, threads)) schedule(static)
    for (int64_t n = 0; n < num_rows; n++) {
        const float* row = logits + n * vocab;
        f32x16 most = splat(-__builtin_inff()), zeros = {};
        int64_t i = 0;
        for (; i + LANES <= vocab; i += LANES) {
            const f32x16 x = load(row + i);
            most = x > most ? x : most;
            zeros += x * 0.0f;  // NaN where x is not finite
        }
        float best = most[0], zero = sum(zeros);
        for (int64_t lane = 1; lane < LANES; lane++) best = most[lane] > best ? most[lane] : best;
        for (; i < vocab; i++) {
            best = row[i] > best ? row[i] : best;
            zero += row[i] * 0.0f;
        }
        is_finite[n] = zero == 0.0f;
        tokens[n] = 0;
        for (int64_t token = 0; token < vocab; token++)
            if (row[token] == best) {
                tokens[n] = token;
                break;
            }
    }
}

}  // extern "C"
