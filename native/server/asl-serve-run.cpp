#include "asl-serve.h"

#include "arg.h"
#include "asl-slots.h"

#include <string>

// tools/server/server.cpp
int llama_server(int argc, char ** argv);

int32_t asl_serve_abi_version(void) { return ASL_SERVE_ABI_VERSION; }

void asl_serve_set_engine(const asl_serve_engine * engine) { asl_slots::set_engine(engine); }

void asl_serve_options(asl_serve_sink sink, void * sink_data) {
    common_params params;
    std::string lines;
    for (const common_arg & option : common_params_parser_init(params, LLAMA_EXAMPLE_SERVER).options) {
        const int n_values = (option.value_hint != nullptr) + (option.value_hint_2 != nullptr);
        const char * kind = option.handler_int ? "int" : "text";
        for (const auto * names : { &option.args, &option.args_neg }) {
            for (const char * name : *names) {
                lines += std::string(name) + " " + std::to_string(n_values) + " " + kind + "\n";
            }
        }
    }
    sink(sink_data, lines.data(), lines.size());
}

int asl_serve_run(int argc, char ** argv) { return llama_server(argc, argv); }
