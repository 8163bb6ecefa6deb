#include "server-task.h"

// A report beside `usage`: in an answer, or in the event of a stream that closes it.
static json with_report(json answer, const std::string & report) {
    if (report.empty() || answer.empty()) {
        return answer;
    }
    if (!answer.is_array()) {
        answer["asl"] = json::parse(report);
        return answer;
    }
    size_t place = answer.size() - 1;
    for (size_t i = 0; i < answer.size(); ++i) {
        const json & event = answer.at(i);
        if (event.contains("usage") || (event.contains("data") && event.at("data").contains("usage"))) {
            place = i;
        }
    }
    json & event = answer.at(place);
    (event.contains("data") ? event.at("data") : event)["asl"] = json::parse(report);
    return answer;
}

json server_task_result_cmpl_final::to_json() {
    // fields that the client chose, of the report too, are all that it gets
    std::vector<std::string> chosen;
    std::swap(chosen, response_fields);
    json answer = with_report(to_json_stock(), asl_report);
    std::swap(chosen, response_fields);
    const bool chooses = res_type == TASK_RESPONSE_TYPE_NONE && !response_fields.empty();
    return chooses ? json_get_nested_values(response_fields, answer) : answer;
}
