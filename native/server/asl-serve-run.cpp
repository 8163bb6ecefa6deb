#include "asl-serve.h"

#include "asl-slots.h"

// tools/server/server.cpp
int llama_server(int argc, char ** argv);

int32_t asl_serve_abi_version(void) { return ASL_SERVE_ABI_VERSION; }

void asl_serve_set_engine(const asl_serve_engine * engine) { asl_slots::set_engine(engine); }

int asl_serve_run(int argc, char ** argv) { return llama_server(argc, argv); }
