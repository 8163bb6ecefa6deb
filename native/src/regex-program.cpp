#include "regex-program.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace {

struct not_understood : std::runtime_error {
    not_understood() : std::runtime_error("not understood") {}
};

enum kind { SET,
    ALL,
    ANY,
    REPEAT,
    LOOK,
    END };

struct node {
    kind what;
    int32_t set = -1;
    bool negative = false;
    int32_t min = 1;
    int32_t max = 1; // -1: no limit
    std::vector<node> parts;
};

bool can_be_empty(const node & n) {
    switch (n.what) {
    case SET:
        return false;
    case LOOK:
        return true;
    case END:
        return true;
    case REPEAT:
        return n.min == 0 || can_be_empty(n.parts[0]);
    case ALL:
        return std::all_of(n.parts.begin(), n.parts.end(), can_be_empty);
    case ANY:
        return std::any_of(n.parts.begin(), n.parts.end(), can_be_empty);
    }
    return true;
}

class parser {
public:
    parser(const std::vector<uint32_t> & regex, std::vector<asl_char_set> & sets) : in(regex), sets(sets) {}

    node parse() {
        node result = parse_any();
        if (!at_end()) {
            throw not_understood();
        }
        return result;
    }

private:
    const std::vector<uint32_t> & in;
    std::vector<asl_char_set> & sets;
    size_t at = 0;

    bool at_end() const { return at == in.size(); }

    bool sees(const char * what) const {
        for (size_t i = 0; what[i]; ++i) {
            if (at + i >= in.size() || in[at + i] != (unsigned char) what[i]) {
                return false;
            }
        }
        return true;
    }

    bool takes(const char * what) {
        if (!sees(what)) {
            return false;
        }
        at += strlen(what);
        return true;
    }

    uint32_t next() {
        if (at_end()) {
            throw not_understood();
        }
        return in[at++];
    }

    node of_set(asl_char_set set) {
        set.finish();
        sets.push_back(std::move(set));
        return { SET, (int32_t) sets.size() - 1, false, 1, 1, {} };
    }

    node parse_any() {
        node result = { ANY, -1, false, 1, 1, { parse_all() } };
        while (takes("|")) {
            result.parts.push_back(parse_all());
        }
        return result;
    }

    node parse_all() {
        node result = { ALL, -1, false, 1, 1, {} };
        while (!at_end() && !sees("|") && !sees(")")) {
            node part = parse_atom();
            result.parts.push_back(parse_repeat(std::move(part)));
        }
        return result;
    }

    node parse_group(kind what, bool negative) {
        node inner = parse_any();
        if (!takes(")")) {
            throw not_understood();
        }
        return what == ANY ? inner : node { what, -1, negative, 1, 1, { inner } };
    }

    node parse_atom() {
        if (takes("(?:")) {
            return parse_group(ANY, false);
        }
        if (takes("(?=")) {
            return parse_group(LOOK, false);
        }
        if (takes("(?!")) {
            return parse_group(LOOK, true);
        }
        if (sees("(?")) {
            throw not_understood();
        }
        if (takes("(")) {
            return parse_group(ANY, false);
        }
        if (takes("$")) {
            return { END, -1, false, 1, 1, {} };
        }
        if (takes("[")) {
            return parse_class();
        }
        asl_char_set set;
        const uint32_t c = next();
        if (c == '\\') {
            if (!add_escaped(set, next())) {
                set.add(in[at - 1], in[at - 1]);
            }
        } else if (c < 128 && strchr("^.*+?{}]", (int) c)) {
            throw not_understood();
        } else {
            set.add(c, c);
        }
        return of_set(std::move(set));
    }

    // What a letter after a backslash stands for; false for characters that stand for themselves.
    bool add_escaped(asl_char_set & set, uint32_t c) {
        static const char names[] = "rntvf", values[] = "\r\n\t\v\f";
        if (c >= 128) {
            throw not_understood();
        }
        if (const char * found = c ? strchr(names, (int) c) : nullptr) {
            set.add(values[found - names], values[found - names]);
        } else if (c == 's') {
            set.add_spaces();
        } else if (c == 'S') {
            set.add_spaces();
            set.negate();
        } else if (c == 'd') {
            set.add('0', '9');
        } else if (c < 33 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
            throw not_understood();
        } else {
            return false;
        }
        return true;
    }

    node parse_class() {
        asl_char_set set;
        const bool negative = takes("^");
        bool first = true;
        while (!takes("]")) {
            const bool is_dash = sees("-");
            uint32_t c = 0;
            const bool is_char = parse_member(set, c);
            const bool is_range = sees("-") && !sees("-]");
            if (is_dash && !first && !sees("]")) {
                throw not_understood(); // after a class or a range
            }
            if (is_char && is_range) {
                uint32_t last = 0;
                at++;
                if (sees("-") || !parse_member(set, last) || last < c) {
                    throw not_understood();
                }
                set.add(c, last);
            } else if (is_range) {
                throw not_understood();
            } else if (is_char) {
                set.add(c, c);
            }
            first = false;
        }
        if (first) {
            throw not_understood();
        }
        if (negative) {
            set.negate();
        }
        return of_set(std::move(set));
    }

    // A character of a class, or a class in it, which is added. True: a character.
    bool parse_member(asl_char_set & set, uint32_t & c) {
        if (sees("[:") || sees("[.") || sees("[=")) {
            throw not_understood();
        }
        c = next();
        if (c != '\\') {
            return true;
        }
        c = next();
        asl_char_set other;
        if (c == 'S') {
            throw not_understood();
        }
        if (c == 's' || c == 'd') {
            add_escaped(set, c);
            return false;
        }
        if (add_escaped(other, c)) {
            for (c = 0; !other.contains(c); ++c) {
            }
        }
        return true;
    }

    int32_t parse_number() {
        int32_t n = 0;
        const size_t begin = at;
        while (!at_end() && in[at] >= '0' && in[at] <= '9' && n < 10000) {
            n = n * 10 + (int32_t) (next() - '0');
        }
        if (at == begin || n >= 10000) {
            throw not_understood();
        }
        return n;
    }

    node parse_repeat(node part) {
        int32_t min = 1;
        int32_t max = 1;
        if (takes("*")) {
            min = 0;
            max = -1;
        } else if (takes("+")) {
            max = -1;
        } else if (takes("?")) {
            min = 0;
        } else if (takes("{")) {
            min = max = parse_number();
            if (takes(",")) {
                max = sees("}") ? -1 : parse_number();
            }
            if (!takes("}") || (max >= 0 && max < min)) {
                throw not_understood();
            }
        } else {
            return part;
        }
        const bool again = sees("?") || sees("*") || sees("+") || sees("{");
        if (again || part.what == LOOK || part.what == END || (max != 1 && can_be_empty(part))) {
            throw not_understood();
        }
        return { REPEAT, -1, false, min, max, { std::move(part) } };
    }
};

class emitter {
public:
    explicit emitter(asl_regex_program & program) : program(program) {}

    void emit(const node & n) {
        switch (n.what) {
        case SET:
            add({ ASL_REGEX_SET, n.set, 0, -1 });
            break;
        case END:
            add({ ASL_REGEX_END, 0, 0, -1 });
            break;
        case ALL:
            for (const node & part : n.parts) {
                emit(part);
            }
            break;
        case ANY:
            emit_any(n);
            break;
        case REPEAT:
            emit_repeat(n);
            break;
        case LOOK:
            emit_look(n);
            break;
        }
    }

    int32_t add(const asl_regex_step & step) {
        if (program.steps.size() > 100000) {
            throw not_understood();
        }
        program.steps.push_back(step);
        return (int32_t) program.steps.size() - 1;
    }

private:
    asl_regex_program & program;

    int32_t here() const { return (int32_t) program.steps.size(); }

    void emit_any(const node & n) {
        std::vector<int32_t> ends;
        for (size_t i = 0; i + 1 < n.parts.size(); ++i) {
            const int32_t split = add({ ASL_REGEX_SPLIT, here() + 1, 0, -1 });
            emit(n.parts[i]);
            ends.push_back(add({ ASL_REGEX_JUMP, 0, 0, -1 }));
            program.steps[split].b = here();
        }
        emit(n.parts.back());
        for (int32_t end : ends) {
            program.steps[end].a = here();
        }
    }

    void emit_repeat(const node & n) {
        for (int32_t i = 0; i < n.min; ++i) {
            emit(n.parts[0]);
        }
        std::vector<int32_t> splits;
        if (n.max < 0) {
            splits.push_back(add({ ASL_REGEX_SPLIT, here() + 1, 0, program.n_loops++ }));
            emit(n.parts[0]);
            add({ ASL_REGEX_JUMP, splits[0], 0, -1 });
        }
        for (int32_t i = n.min; i < n.max; ++i) {
            splits.push_back(add({ ASL_REGEX_SPLIT, here() + 1, 0, -1 }));
            emit(n.parts[0]);
        }
        for (int32_t split : splits) {
            program.steps[split].b = here();
        }
    }

    void emit_look(const node & n) {
        const int32_t look = add({ ASL_REGEX_LOOK, n.negative, 0, -1 });
        emit(n.parts[0]);
        add({ ASL_REGEX_MATCH, 0, 0, -1 });
        program.steps[look].b = here();
    }
};

} // namespace

bool asl_regex_compile(const std::vector<uint32_t> & regex, asl_regex_program & program) {
    try {
        const node root = parser(regex, program.sets).parse();
        emitter out(program);
        out.emit(root);
        out.add({ ASL_REGEX_MATCH, 0, 0, -1 });
        return true;
    } catch (const not_understood &) {
        return false;
    }
}
