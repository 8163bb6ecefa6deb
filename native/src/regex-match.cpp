#include "asl-regex.h"

#include "regex-program.h"

#include <algorithm>
#include <type_traits>

namespace {

thread_local bool by_std = false;

// Where a search goes on, most urgent last; or, with a complement as pc, a loop whose result at pos is noted.
struct place {
    int32_t pc;
    size_t pos;
};

enum noted : uint8_t { UNKNOWN,
    FAILS,
    SUCCEEDS };

// Matches of a program in one piece of a text.
template <typename CharT>
class matcher {
public:
    matcher(const asl_regex_program & program, const CharT * text, size_t n, std::vector<place> & stack)
        : program(program), text(text), n(n), stack(stack) {}

    // Where the match that begins at pos ends; -1: none does.
    int64_t match(size_t pos, bool not_empty) { return run(0, pos, false, not_empty); }

private:
    const asl_regex_program & program;
    const CharT * text;
    const size_t n;
    std::vector<place> & stack;
    size_t n_splits = 0;
    std::vector<uint8_t> notes; // [n_loops, n + 1], once a piece takes longer than its length explains

    uint8_t & note(int32_t pc, size_t pos) { return notes[program.steps[pc].loop * (n + 1) + pos]; }

    bool starts_notes() {
        if (notes.empty() && ++n_splits > 16 * n + 1024) {
            notes.resize(program.n_loops * (n + 1), UNKNOWN);
        }
        return !notes.empty();
    }

    int64_t run(int32_t pc, const size_t begin, bool looks, bool not_empty) {
        const size_t base = stack.size();
        size_t pos = begin;
        while (true) {
            const asl_regex_step & step = program.steps[pc];
            bool ok = true;
            switch (step.op) {
            case ASL_REGEX_SET:
                ok = pos < n && program.sets[step.a].contains((typename std::make_unsigned<CharT>::type) text[pos]);
                pos += ok;
                pc++;
                break;
            case ASL_REGEX_END:
                ok = pos == n;
                pc++;
                break;
            case ASL_REGEX_JUMP:
                pc = step.a;
                break;
            case ASL_REGEX_LOOK:
                ok = (run(pc + 1, pos, true, false) >= 0) != (step.a != 0);
                pc = step.b;
                break;
            case ASL_REGEX_SPLIT:
                    // whether an empty match counts depends on where it began: nothing is noted then
                if (step.loop >= 0 && starts_notes() && !not_empty) {
                    const uint8_t found = note(pc, pos);
                    if (looks && found == SUCCEEDS) {
                        return succeed(base, looks, pos);
                    }
                    ok = found != FAILS;
                    if (ok) {
                        stack.push_back({ ~pc, pos });
                    }
                }
                if (ok) {
                    stack.push_back({ step.b, pos });
                    pc = step.a;
                }
                break;
            case ASL_REGEX_MATCH:
                ok = !not_empty || pos > begin;
                if (ok) {
                    return succeed(base, looks, pos);
                }
                break;
            }
            if (!ok && !go_back(base, pc, pos)) {
                return -1;
            }
        }
    }

    // To the last place that is left; false if there is none.
    bool go_back(size_t base, int32_t & pc, size_t & pos) {
        while (stack.size() > base) {
            const place last = stack.back();
            stack.pop_back();
            if (last.pc >= 0) {
                pc = last.pc;
                pos = last.pos;
                return true;
            }
            note(~last.pc, last.pos) = FAILS;
        }
        return false;
    }

    int64_t succeed(size_t base, bool looks, size_t pos) {
        for (size_t i = base; looks && i < stack.size(); ++i) {
            if (stack[i].pc < 0) {
                note(~stack[i].pc, stack[i].pos) = SUCCEEDS; // of a look, only whether there is a match counts
            }
        }
        stack.resize(base);
        return (int64_t) pos;
    }
};

// As std::regex_iterator goes on: after an empty match, one that is not empty may begin at the same place.
template <typename CharT>
void split_piece(matcher<CharT> & m, size_t n, std::vector<size_t> & words) {
    size_t done = 0;
    size_t pos = 0;
    bool after_empty = false;
    while (pos <= n) {
        const int64_t end = m.match(pos, after_empty);
        if (end < 0) {
            after_empty = false;
            pos++;
            continue;
        }
        if (pos > done) {
            words.push_back(pos - done);
        }
        words.push_back((size_t) end - pos);
        after_empty = (size_t) end == pos;
        done = pos = (size_t) end;
        if (after_empty && pos == n) {
            break;
        }
    }
    if (done < n) {
        words.push_back(n - done);
    }
}

} // namespace

template <typename CharT>
bool asl_regex_split(const std::basic_string<CharT> & text, const std::basic_string<CharT> & regex,
        const std::vector<size_t> & offsets, std::vector<size_t> & words) {
    asl_regex_program program;
    std::vector<uint32_t> units;
    for (CharT c : regex) {
        units.push_back((typename std::make_unsigned<CharT>::type) c);
    }
    if (by_std || !asl_regex_compile(units, program)) {
        return false;
    }
    words.reserve(offsets.size());
    std::vector<place> stack;
    size_t begin = 0;
    for (size_t n : offsets) {
        matcher<CharT> m(program, text.data() + begin, n, stack);
        split_piece(m, n, words);
        begin += n;
    }
    return true;
}

template bool asl_regex_split(const std::string &, const std::string &, const std::vector<size_t> &, std::vector<size_t> &);
template bool asl_regex_split(const std::wstring &, const std::wstring &, const std::vector<size_t> &, std::vector<size_t> &);

void asl_set_std_regex(bool on) {
    by_std = on;
}
