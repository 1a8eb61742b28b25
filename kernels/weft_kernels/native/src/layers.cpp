// Decoder layers in one call: the operators of the other files in their order, on buffers that stay. A layer
// of a small model computes for a millisecond; to come back to Python between its ten operators, and to ask
// for memory for each, took a tenth of a decoding step.
#include <cstring>

#include "operators.h"

// What the layers share. The Python side writes these structs (`native/layers.py`), field by field.
struct Shape {
    int64_t hidden, num_heads, num_kv_heads, dim, block_size;
    float eps, scale;
};

// One layer's weights and caches; biases and norms of heads are null where there are none. Where gate_up is
// null the caller computes the other half of the layer.
struct Layer {
    const float *input_norm, *qkv, *qkv_bias, *head_norms, *o, *o_bias, *post_norm;
    const float *gate_up, *gate_up_bias, *down, *down_bias;
    int64_t inner, window;  // the width between gate_up and down; 0: no window
    float *k_cache, *v_cache;
};

// The rows of one step, their queries and their adapters; see `weft_paged_decode` and `weft_adapted_linear`.
// shrunk: room for what adapters make of the rows.
struct Rows {
    int64_t num_rows;
    const int64_t *query_rows, *tables, *lengths;
    int64_t num_queries, table_width;
    const Slot* slots;
    const Segment* segments;
    int64_t num_segments;
    const int64_t* adapted_rows;
    float* shrunk;
    int64_t has_vectors;
};

// One step. inputs [layers, 4]: the adapters' inputs of qkv, o, gate_up and down. asked: of all rows those
// whose results are wanted after the last layer, which computes what comes after the keys and values for
// `last` alone; null: all. scratch: for each row the larger of (heads + 2 KV heads) dim + 3 heads dim and of
// 3 inner.
struct Step {
    Rows all, last;
    const int64_t* asked;
    const float* rotary;
    const int64_t *kv_slots, *inputs;
    float* scratch;
    int64_t threads;
};

namespace {

// One layer of a step.
struct Run {
    const Shape& shape;
    const Layer& layer;
    const Step& step;
    const int64_t* inputs;
    const Rows& rows;  // of what comes after the keys and values

    // y = x W + bias for all of `own`, and the adapters that they have at this input.
    void linear(const Rows& own, int64_t input, const float* x, const float* packed, const float* bias,
                int64_t num_in, int64_t num_out, float* y) const {
        const int32_t threads = step.threads;
        if (own.num_segments == 0)
            weft_linear(x, num_in, packed, bias, own.num_rows, num_in, num_out, y, threads);
        else
            weft_adapted_linear(x, num_in, packed, bias, own.num_rows, num_in, num_out, y, own.slots, input,
                                own.segments, own.num_segments, own.adapted_rows, own.shrunk, own.has_vectors,
                                threads);
    }

    void norm(const Rows& own, float* x, const float* delta, const float* weight, float* h) const {
        weft_add_rms_norm(x, delta, weight, h, own.num_rows, shape.hidden, shape.eps, step.threads);
    }

    // The rows that are asked for of x [T, width], one after the other; x itself where all are.
    const float* asked(const float* x, int64_t width, float* to) const {
        if (&rows == &step.all) return x;
        for (int64_t n = 0; n < rows.num_rows; n++)
            std::memmove(to + n * width, x + step.asked[n] * width, width * sizeof(float));
        return to;
    }

    void attend(const float* h, float* out) const {
        const int64_t width = shape.num_heads * shape.dim, num_rows = step.all.num_rows;
        const int64_t qkv_width = width + 2 * shape.num_kv_heads * shape.dim;
        const int32_t threads = step.threads;
        float *qkv = step.scratch, *q = qkv + num_rows * qkv_width, *o = q + num_rows * width;
        linear(step.all, inputs[0], h, layer.qkv, layer.qkv_bias, shape.hidden, qkv_width, qkv);
        weft_rotate_and_write(qkv, layer.head_norms, shape.eps, step.rotary, step.kv_slots, num_rows,
                              shape.num_heads, shape.num_kv_heads, shape.dim, q, layer.k_cache,
                              layer.v_cache, threads);
        const float* queries = asked(q, width, o + num_rows * width);
        weft_paged_decode(queries, layer.k_cache, layer.v_cache, rows.query_rows, rows.tables, rows.lengths,
                          rows.num_queries, rows.table_width, shape.block_size, shape.num_heads,
                          shape.num_kv_heads, shape.dim, layer.window, shape.scale, o, threads);
        linear(rows, inputs[1], o, layer.o, layer.o_bias, width, shape.hidden, out);
    }

    void mlp(const float* h, float* out) const {
        float *gate_up = step.scratch, *act = gate_up + rows.num_rows * 2 * layer.inner;
        linear(rows, inputs[2], h, layer.gate_up, layer.gate_up_bias, shape.hidden, 2 * layer.inner, gate_up);
        weft_silu_mul(gate_up, act, rows.num_rows, layer.inner, step.threads);
        linear(rows, inputs[3], act, layer.down, layer.down_bias, layer.inner, shape.hidden, out);
    }
};

}  // namespace

extern "C" {

// Layers first .. stop - 1 of num_layers, of which only the last may lack its other half. x [T, hidden] is the
// residual stream, changed in place; delta: what the layer before adds to it, or null; may be `out`. What is
// left, of the rows that are asked for where the model's last layer was among these: in x; in h, the normed
// input of the last layer's other half; in out, what the last half that was computed here adds to x.
void weft_layers(const Shape* shape, const Layer* layers, int64_t num_layers, int64_t first, int64_t stop,
                 const Step* step, float* x, const float* delta, float* h, float* out) {
    for (int64_t i = first; i < stop; i++) {
        const bool is_pruned = i == num_layers - 1 && step->asked;
        const Run run = {*shape, layers[i], *step, step->inputs + 4 * i, is_pruned ? step->last : step->all};
        run.norm(step->all, x, delta, run.layer.input_norm, h);
        run.attend(h, out);
        run.asked(x, shape->hidden, x);  // rows ascend, so none is overwritten before it is read
        run.norm(run.rows, x, out, run.layer.post_norm, h);
        if (run.layer.gate_up) run.mlp(h, out);
        delta = out;
    }
}

}  // extern "C"
