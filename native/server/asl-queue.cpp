#include "server-queue.h"

std::vector<server_task> server_queue::asl_take_waiting(int64_t wait_ms) {
    std::vector<server_task> result;
    if (wait_ms < 0) {
        return result;
    }
    std::unique_lock<std::mutex> lock(mutex_tasks);
    const int64_t last = ggml_time_ms() - wait_ms;
    for (auto it = queue_tasks_deferred.begin(); it != queue_tasks_deferred.end();) {
        if (it->type == SERVER_TASK_TYPE_COMPLETION && it->asl_t_waits < last) {
            result.push_back(std::move(*it));
            it = queue_tasks_deferred.erase(it);
        } else {
            ++it;
        }
    }
    return result;
}
