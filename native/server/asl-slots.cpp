#include "asl-slots.h"

#include "asl.h"

#include "llama.h"
#include "log.h"

#include <algorithm>
#include <stdexcept>

#ifdef __GLIBC__
#include <malloc.h>
#endif

static const asl_serve_engine * g_engine = nullptr;

void asl_slots::set_engine(const asl_serve_engine * engine) { g_engine = engine; }

bool asl_slots::get(const std::string & name, std::string & data) {
    const auto sink = [](void * sink_data, const char * bytes, size_t n) { ((std::string *) sink_data)->assign(bytes, n); };
    return g_engine && g_engine->get(g_engine->user_data, name.c_str(), sink, &data);
}

void asl_slots::add_about(common_json & props) {
    std::string data;
    if (get("props", data)) {
        props["asl"] = common_json::parse(data);
    }
}

std::string asl_slots::metrics() {
    std::string data;
    get("metrics", data);
    return data;
}

void asl_slots::add_retry_after(std::map<std::string, std::string> & headers, int status) {
    if (g_engine && status == 503) {
        headers["Retry-After"] = "10"; // a long prompt on a CPU
    }
}

int64_t asl_slots::wait_ms() { return g_engine ? g_engine->wait_seconds * (int64_t) 1000 : -1; }

void asl_slots::finished(int id_slot, const std::string & text, int32_t n_tokens) {
    if (on) {
        g_engine->finished(g_engine->user_data, id_slot, text.c_str(), n_tokens);
    }
}

void asl_common_start::add(const llama_tokens & remembered, int32_t n_common) {
    if (n_common > n_tokens) {
        n_tokens = n_common;
        other = n_common < (int32_t) remembered.size() ? remembered[n_common] : -1;
    }
}

void asl_slots::check_options(const std::string & options) {
    char text[1024] = "";
    if (g_engine && !g_engine->check(g_engine->user_data, options.c_str(), text, sizeof(text))) {
        throw std::invalid_argument(text);
    }
}

void asl_slots::add_option(std::string & options, const char * name, const common_json & value) {
    if (!g_engine) {
        return;
    }
    common_json all = options.empty() ? common_json::object() : common_json::parse(options);
    all[name] = value;
    options = all.dump_safe();
}

// Why this use of the server needs all K/V; NULL if it does not.
static const char * find_unprunable(const common_params & params) {
    if (!params.mmproj.path.empty()) {
        return "the server was started with a multimodal projector (--mmproj)";
    }
    if (params.speculative.has_dft() || std::any_of(params.speculative.types.begin(), params.speculative.types.end(),
                                                [](common_speculative_type type) { return type != COMMON_SPECULATIVE_TYPE_NONE; })) {
        return "speculative decoding needs the logits of every token";
    }
    if (params.embedding || params.pooling_type == LLAMA_POOLING_TYPE_RANK) {
        return "embeddings and reranking need every token";
    }
    return nullptr;
}

void asl_slots::refuse(const char * text) {
    on = false;
    reason = text;
    report = common_json({ { "pruned", false }, { "reason", reason } }).dump();
    LOG_WRN("asl: prompts are not pruned: %s\n", text);
}

// What the engine makes private contexts of: one sequence, one output, sampled elsewhere.
static llama_context_params make_private_params(const common_params & params) {
    llama_context_params result = common_context_params_to_llama(params);
    result.n_seq_max = 1;
    result.kv_unified = false;
    result.n_outputs_max = 1;
    result.n_outputs_max_per_seq = 0;
    result.samplers = nullptr;
    result.n_samplers = 0;
    return result;
}

common_init_result_ptr asl_slots::init(common_params & params) {
    if (!g_engine) {
        return common_init_from_params(params);
    }
    if (has_given) { // awake again: params has our sizes
        params.n_ctx = given.n_ctx;
        params.kv_unified = given.kv_unified;
    }
    given = params;
    has_given = true;

    char text[1024] = "";
    sizes = { params.model.path.c_str(), params.n_ctx, params.n_parallel, params.kv_unified, 0, 0, 0, false };
    if (const char * why = find_unprunable(params)) {
        refuse(why);
    } else if (reason.empty() && !g_engine->size(g_engine->user_data, &sizes, text, sizeof(text))) {
        refuse(text);
    }
    if (!reason.empty()) {
        return common_init_from_params(params);
    }
    // a stream of cells for each slot: no slot can take another's
    params.kv_unified = false;
    params.n_ctx = sizes.n_cells * params.n_parallel;
    common_init_result_ptr result = common_init_from_params(params);
    if (!result->context()) {
        return result;
    }
    const llama_context_params private_params = make_private_params(params);
    if (!g_engine->open(g_engine->user_data, result->context(), &private_params, &sizes, text, sizeof(text))) {
        if (sizes.refused) {
            LOG_ERR("asl: %s\n", text);
            return common_init_from_params(params, true); // no context: the server ends
        }
        refuse(text);
        result.reset();
        params = given;
        return common_init_from_params(params);
    }
    on = true;
    ctx = result->context();
    running.assign(params.n_parallel, false);
    LOG_INF("asl: %d slots of %d tokens in %d cells each\n", params.n_parallel, sizes.n_ctx_slot, sizes.n_cells);
    return result;
}

void asl_slots::free() {
    if (on) {
        g_engine->close(g_engine->user_data);
        on = false;
        ctx = nullptr;
    }
}

void asl_slots::give_memory_back() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

uint64_t asl_slots::identify_adapters() const {
    uint64_t id = 0;
    return asl_context_get_adapters(ctx, &id) ? id : (uint64_t) ggml_time_us(); // unreadable: like no other
}

int32_t asl_slots::count_used(int id_slot) const {
    return sizes.n_cells - asl_context_get_free_cells(ctx, id_slot);
}

int32_t asl_slots::plan(const asl_serve_prompt & prompt, asl_serve_answer & answer) {
    const int32_t status = g_engine->plan(g_engine->user_data, &prompt, &answer);
    running[prompt.slot] = status == ASL_SERVE_MORE;
    return status;
}

int32_t asl_slots::step(int id_slot, asl_serve_answer & answer) {
    last = id_slot;
    const int32_t status = g_engine->step(g_engine->user_data, id_slot, &answer);
    running[id_slot] = status == ASL_SERVE_MORE;
    return status;
}

void asl_slots::cancel(int id_slot) {
    if (on && running[id_slot]) {
        running[id_slot] = false;
        g_engine->cancel(g_engine->user_data, id_slot);
    }
}

asl_file_scope::asl_file_scope() { asl_throw_on_abort(true); }

asl_file_scope::~asl_file_scope() { asl_throw_on_abort(false); }

// Slot files: [tokens as the server packs them] [adapters, two halves, n_pruned, n_dropped, mark]; without adapters
// [n_pruned, n_dropped, mark]
static const llama_token FILE_MARK = 0x004c5341; // "ASL"
static const llama_token FILE_MARK_ADAPTERS = 0x014c5341;

void asl_prompt_state::save(std::vector<char> & packed) const {
    if (n_pruned == 0 && adapters == 0) {
        return;
    }
    const llama_token trailer[] = { (int32_t) (adapters >> 32), (int32_t) adapters, n_pruned, n_dropped,
        adapters == 0 ? FILE_MARK : FILE_MARK_ADAPTERS };
    const char * begin = (const char *) (adapters == 0 ? trailer + 2 : trailer);
    packed.insert(packed.end(), begin, (const char *) trailer + sizeof(trailer));
}

void asl_prompt_state::load(std::vector<llama_token> & packed) {
    *this = {};
    const size_t n = packed.size();
    const bool has_adapters = n >= 5 && packed[n - 1] == FILE_MARK_ADAPTERS;
    if (has_adapters || (n >= 3 && packed[n - 1] == FILE_MARK)) {
        n_pruned = packed[n - 3];
        n_dropped = packed[n - 2];
        if (has_adapters) {
            adapters = (uint64_t) (uint32_t) packed[n - 5] << 32 | (uint32_t) packed[n - 4];
        }
        packed.resize(n - (has_adapters ? 5 : 3));
    }
}

void asl_prompt_state::check(int32_t n_tokens, int32_t n_cells_used) {
    if (n_pruned < 0 || n_pruned > n_tokens || n_dropped < 0 || n_dropped > n_pruned) {
        throw std::runtime_error("Invalid asl state in slot save file");
    }
    if (n_tokens - n_cells_used != n_dropped) {
        // of another program: which of the tokens are missing is not known
        n_dropped = n_tokens - n_cells_used;
        n_pruned = n_tokens;
    }
    if (n_dropped < 0) {
        throw std::runtime_error("Slot save file holds more cells than tokens");
    }
}

common_json asl_prompt_state::to_json(int32_t n_tokens, const std::string & report) const {
    common_json result = { { "n_pruned", n_pruned }, { "n_cells_used", n_tokens - n_dropped } };
    if (!report.empty()) {
        result["report"] = common_json::parse(report);
    }
    return result;
}
