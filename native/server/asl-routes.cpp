#include "asl-routes.h"

#include "asl-slots.h"

#include "server-http.h"

static server_http_context::handler_t make_handler(const std::string & name, const char * content_type) {
    return [name, content_type](const server_http_req & req) {
        const std::string number = req.get_param("number");
        auto res = std::make_unique<server_http_res>();
        if (asl_slots::get(number.empty() ? name : name + "/" + number, res->data)) {
            res->content_type = content_type;
            res->headers["Cache-Control"] = "no-store";
        } else {
            res->status = 404; // the server words it
        }
        return res;
    };
}

void asl_add_routes(server_http_context & http) {
    http.get("/asl", make_handler("page", "text/html; charset=utf-8"));
    http.get("/asl/answers", make_handler("answers", "application/json; charset=utf-8"));
}
