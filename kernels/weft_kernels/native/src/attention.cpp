// Attention of decoding requests over KV blocks where they lie, and what comes before it: norms and
// rotation of the heads of q and k, keys and values into their blocks.
#include <algorithm>
#include <cmath>
#include <vector>

#include "operators.h"
#include "parallel.h"
#include "vec.h"

using namespace weft;

namespace {

// One head: y = norm(x) * weight where there is a weight, rotated by [cos | sin] of its position.
inline void norm_rotate(const float* x, const float* weight, float eps, const float* table, int64_t dim,
                        float* y) {
    float scratch[1024];
    const int64_t half = dim / 2;
    if (weight) {
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < dim; i++) squares += x[i] * x[i];
        const float by = 1.0f / std::sqrt(squares / dim + eps);
#pragma omp simd
        for (int64_t i = 0; i < dim; i++) scratch[i] = x[i] * by * weight[i];
        x = scratch;
    }
    const float *cos = table, *sin = table + half;
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const float x1 = x[i], x2 = x[half + i];
        y[i] = x1 * cos[i] - x2 * sin[i];
        y[half + i] = x2 * cos[i] + x1 * sin[i];
    }
}

constexpr int MAX_VECTORS = 64;  // of a head: 1024 floats
constexpr int64_t HEADS = 4;     // query heads that share the loads of a KV head

// What a query head has seen so far, with the softmax's running maximum (Milakov & Gimelshein 2018).
struct Seen {
    float most, total;
};

inline f32x16 load_part(const float* p, int64_t i, int64_t dim) {
    const int64_t left = dim - i * LANES;
    return left >= LANES ? load(p + i * LANES) : load_some(p + i * LANES, left);
}

// N query heads of one KV head meet up to 16 tokens of a block, while those of the next block are fetched.
// query, acc: N rows of whole vectors, in `padded` floats each. V: vectors of a head, all whole; 0 = any.
template <int N, int V>
void meet(const float* query, float* acc, Seen* seen, int64_t padded, const float* k, const float* v, int64_t num,
          int64_t token_stride, int64_t dim, const float* next_k, const float* next_v) {
    const int64_t vectors = V ? V : padded / LANES;
    auto part = [&](const float* p, int64_t i) { return V ? load(p + i * LANES) : load_part(p, i, dim); };
    f32x16 scores[N];
    for (int n = 0; n < N; n++) scores[n] = splat(-__builtin_inff());
    for (int64_t t = 0; t < num; t++) {
        f32x16 dots[N] = {};
        for (int64_t i = 0; i < vectors; i++) {
            __builtin_prefetch(next_k + t * token_stride + i * LANES, 0, 2);
            f32x16 key = part(k + t * token_stride, i);
            keep(key);
            for (int n = 0; n < N; n++) dots[n] += load(query + n * padded + i * LANES) * key;
        }
        for (int n = 0; n < N; n++) scores[n][t] = sum(dots[n]);
    }
    for (int n = 0; n < N; n++) {
        float peak = seen[n].most;
        for (int64_t t = 0; t < num; t++) peak = scores[n][t] > peak ? scores[n][t] : peak;
        const float correction = exp(splat(seen[n].most - peak))[0];
        scores[n] = exp(scores[n] - peak);
        seen[n] = {peak, seen[n].total * correction + sum(scores[n])};
        for (int64_t i = 0; i < vectors; i++) {
            float* out = acc + n * padded + i * LANES;
            store(out, load(out) * correction);
        }
    }
    f32x16 sums[N][V ? V : MAX_VECTORS];
    for (int n = 0; n < N; n++)
        for (int64_t i = 0; i < vectors; i++) sums[n][i] = load(acc + n * padded + i * LANES);
    for (int64_t t = 0; t < num; t++)
        for (int64_t i = 0; i < vectors; i++) {
            __builtin_prefetch(next_v + t * token_stride + i * LANES, 0, 2);
            f32x16 value = part(v + t * token_stride, i);
            keep(value);
            for (int n = 0; n < N; n++) sums[n][i] += scores[n][t] * value;
        }
    for (int n = 0; n < N; n++)
        for (int64_t i = 0; i < vectors; i++) store(acc + n * padded + i * LANES, sums[n][i]);
}

typedef void (*Meet)(const float*, float*, Seen*, int64_t, const float*, const float*, int64_t, int64_t, int64_t,
                     const float*, const float*);

template <int V>
Meet meet_heads(int64_t num) {
    static const Meet forms[HEADS] = {meet<1, V>, meet<2, V>, meet<3, V>, meet<4, V>};
    return forms[num - 1];
}

inline Meet choose(int64_t num, int64_t dim) {
    if (dim == 64) return meet_heads<4>(num);
    if (dim == 128) return meet_heads<8>(num);
    return meet_heads<0>(num);
}

// One layer's caches [blocks, block_size, num_kv_heads, dim], and the requests that read them.
struct Call {
    const float *q, *k_cache, *v_cache;
    const int64_t *rows, *tables, *lengths;
    int64_t table_width, block_size, num_heads, num_kv_heads, dim, window;
    float scale;
    float* o;

    int64_t first_token(int64_t b) const { return window > 0 && lengths[b] > window ? lengths[b] - window : 0; }

    // Where token j of request b begins, in floats.
    int64_t place(int64_t b, int64_t j) const {
        const int64_t block = tables[b * table_width + j / block_size];
        return (block * block_size + j % block_size) * num_kv_heads * dim;
    }
};

// The KV heads first_kv .. last_kv - 1 of request b, block by block; `after` is what is read next.
void attend(const Call& call, int64_t b, int64_t first_kv, int64_t last_kv, int64_t after, float* scratch) {
    const int64_t dim = call.dim, groups = call.num_heads / call.num_kv_heads;
    const int64_t padded = (dim + LANES - 1) / LANES * LANES, num_own = (last_kv - first_kv) * groups;
    float *query = scratch, *acc = scratch + num_own * padded;
    Seen* seen = reinterpret_cast<Seen*>(acc + num_own * padded);
    const int64_t head = call.rows[b] * call.num_heads + first_kv * groups;
    for (int64_t h = 0; h < num_own; h++) {
        for (int64_t i = 0; i < padded; i++) {
            query[h * padded + i] = i < dim ? call.q[(head + h) * dim + i] * call.scale : 0;
            acc[h * padded + i] = 0;
        }
        seen[h] = {-__builtin_inff(), 0};
    }
    for (int64_t j = call.first_token(b); j < call.lengths[b];) {
        const int64_t num = std::min({LANES, call.block_size - j % call.block_size, call.lengths[b] - j});
        const int64_t at = call.place(b, j);
        j += num;
        const int64_t next = j < call.lengths[b] ? call.place(b, j) : after;
        for (int64_t kv = first_kv; kv < last_kv; kv++)
            for (int64_t g = 0; g < groups; g += HEADS) {
                const int64_t h = (kv - first_kv) * groups + g, column = kv * dim;
                // the heads of a KV head that come later fetch the same once more, from the cache
                choose(std::min(HEADS, groups - g), dim)(
                    query + h * padded, acc + h * padded, seen + h, padded, call.k_cache + at + column,
                    call.v_cache + at + column, num, call.num_kv_heads * dim, dim, call.k_cache + next + column,
                    call.v_cache + next + column);
            }
    }
    for (int64_t h = 0; h < num_own; h++) {
        const float by = 1.0f / seen[h].total;
        for (int64_t i = 0; i < dim; i++) call.o[(head + h) * dim + i] = acc[h * padded + i] * by;
    }
}

}  // namespace

extern "C" {

// [q | k | v] of each row: q and k normalised per head (where norms are given) and rotated, q into
// q_out [T, num_heads, dim], k and v into their slots of the caches [slots, num_kv_heads, dim].
// norms [num_heads + num_kv_heads, dim] or null; rotary [T, 2, dim / 2]; dim <= 1024.
void weft_rotate_and_write(const float* qkv, const float* norms, float eps, const float* rotary,
                           const int64_t* kv_slots, int64_t num_rows, int64_t num_heads,
                           int64_t num_kv_heads, int64_t dim, float* q_out, float* k_cache,
                           float* v_cache, int32_t threads) {
    const int64_t width = (num_heads + 2 * num_kv_heads) * dim, kv_width = num_kv_heads * dim;
    const int n = num_threads(num_rows * width, threads);
#pragma omp parallel for num_threads(n) schedule(static)
    for (int64_t t = 0; t < num_rows; t++) {
        const float *row = qkv + t * width, *table = rotary + t * dim;
        float* k_out = k_cache + kv_slots[t] * kv_width;
        for (int64_t h = 0; h < num_heads + num_kv_heads; h++) {
            const float* norm = norms ? norms + h * dim : nullptr;
            float* out = h < num_heads ? q_out + (t * num_heads + h) * dim : k_out + (h - num_heads) * dim;
            norm_rotate(row + h * dim, norm, eps, table, dim, out);
        }
        std::memcpy(v_cache + kv_slots[t] * kv_width, row + (num_heads + num_kv_heads) * dim,
                    kv_width * sizeof(float));
    }
}

// One query per request: o[b, h] = softmax(scale q[b, h] . k) v over the last `window` (0: all) of the
// lengths[b] tokens in its blocks. q, o [rows, num_heads, dim], request b's at rows[b]; caches
// [blocks, block_size, num_kv_heads, dim]; tables [B, table_width].
void weft_paged_decode(const float* q, const float* k_cache, const float* v_cache, const int64_t* rows,
                       const int64_t* tables, const int64_t* lengths, int64_t num_requests,
                       int64_t table_width, int64_t block_size, int64_t num_heads,
                       int64_t num_kv_heads, int64_t dim, int64_t window, float scale, float* o,
                       int32_t threads) {
    const Call call = {q, k_cache, v_cache, rows, tables, lengths, table_width, block_size,
                       num_heads, num_kv_heads, dim, window, scale, o};
    int64_t total = 0;
    for (int64_t b = 0; b < num_requests; b++) total += lengths[b] - call.first_token(b);
    // a request's KV heads lie side by side in each token, so one thread takes them all where there is
    // enough else to do
    const int64_t split = num_requests >= 4 * threads ? 1 : num_kv_heads, each = num_kv_heads / split;
    const int64_t padded = (dim + LANES - 1) / LANES * LANES;
#pragma omp parallel num_threads(num_threads(total * num_kv_heads * dim, threads))
    {
        std::vector<float> scratch(each * (num_heads / num_kv_heads) * (2 * padded + 2));
        int64_t from, to, done = 0;
        share(total * split, omp_get_thread_num(), omp_get_num_threads(), &from, &to);
        for (int64_t task = 0; task < num_requests * split; task++) {
            const int64_t b = task / split, next = std::min((task + 1) / split, num_requests - 1);
            const bool is_mine = from <= done && done < to;
            done += lengths[b] - call.first_token(b);
            if (is_mine)
                attend(call, b, task % split * each, (task % split + 1) * each,
                       call.place(next, call.first_token(next)), scratch.data());
        }
    }
}

}  // extern "C"
