// The operators that others are made of; each is described where it is defined.
#pragma once

#include <cstdint>

struct Slot;
struct Segment;

extern "C" {

void weft_add_rms_norm(float* x, const float* delta, const float* weight, float* y, int64_t num_rows,
                       int64_t width, float eps, int32_t threads);

void weft_silu_mul(const float* gate_up, float* y, int64_t num_rows, int64_t width, int32_t threads);

void weft_rotate_and_write(const float* qkv, const float* norms, float eps, const float* rotary,
                           const int64_t* kv_slots, int64_t num_rows, int64_t num_heads,
                           int64_t num_kv_heads, int64_t dim, float* q_out, float* k_cache,
                           float* v_cache, int32_t threads);

void weft_paged_decode(const float* q, const float* k_cache, const float* v_cache, const int64_t* rows,
                       const int64_t* tables, const int64_t* lengths, int64_t num_requests,
                       int64_t table_width, int64_t block_size, int64_t num_heads,
                       int64_t num_kv_heads, int64_t dim, int64_t window, float scale, float* o,
                       int32_t threads);

void weft_linear(const float* x, int64_t x_stride, const float* packed, const float* bias,
                 int64_t num_rows, int64_t num_in, int64_t num_out, float* y, int32_t threads);

void weft_adapted_linear(const float* x, int64_t x_stride, const float* packed, const float* bias,
                         int64_t num_rows, int64_t num_in, int64_t num_out, float* y, const Slot* slots,
                         int64_t input, const Segment* segments, int64_t num_segments, const int64_t* rows,
                         float* h, int32_t has_vectors, int32_t threads);

}  // extern "C"
