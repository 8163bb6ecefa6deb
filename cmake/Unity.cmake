# Fewer and longer translation units for parts of llama.cpp. Most of what they cost is headers, the same ones in each file.

# Compiles the sources of a target together, some at a time. Those that match `alone` stay by themselves: they do not get
# along with others (names, macros), or take long enough as they are.
function(asl_unite target alone)
    get_target_property(folder ${target} SOURCE_DIR)
    get_target_property(sources ${target} SOURCES)
    list(FILTER sources INCLUDE REGEX "\\.cpp$")
    list(FILTER sources INCLUDE REGEX "${alone}")
    foreach(source ${sources})
        cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY ${folder})
        set_source_files_properties(${source} TARGET_DIRECTORY ${target} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    endforeach()
    set_target_properties(${target} PROPERTIES
        UNITY_BUILD ON
        UNITY_BUILD_CODE_BEFORE_INCLUDE "#undef FILENAME" # each file of common/jinja has one
        UNITY_BUILD_BATCH_SIZE 8)
endfunction()

# Optimises a target's code less, which compiles in two thirds of the time. For what waits for networks and people; sources
# that match `hot` run for every token of an answer, and stay as they are.
function(asl_optimise_less target hot)
    if (MSVC)
        return()
    endif()
    target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
    get_target_property(folder ${target} SOURCE_DIR)
    get_target_property(sources ${target} SOURCES)
    list(FILTER sources INCLUDE REGEX "${hot}")
    foreach(source ${sources})
        cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY ${folder})
        set_source_files_properties(${source} TARGET_DIRECTORY ${target} PROPERTIES COMPILE_OPTIONS $<$<CONFIG:Release>:-O3>)
    endforeach()
endfunction()
