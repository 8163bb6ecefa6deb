// asl-routes.h: what the engine shows by itself.

#pragma once

struct server_http_context;

// GET /asl (a page), /asl/answers and /asl/answers?number=7 (JSON). 404 where the engine has none.
void asl_add_routes(server_http_context & http);
