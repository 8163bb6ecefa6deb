# asl-archs: writes tiny random models of every architecture, from llama.cpp's own test-llama-archs.cpp.
# `make conformance` runs them; nothing of it is installed.

# asl_add_archs(LLAMA_DIR): the test is copied with another number of layers, for a main function of ours to include
function(asl_add_archs llama_dir)
    set(test ${llama_dir}/tests/test-llama-archs.cpp)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${test})
    file(READ ${test} source)
    string(REPLACE "uint32_t n_layer = 2;" "uint32_t n_layer = asl_n_layer;" changed "${source}")
    if (changed STREQUAL source)
        message(FATAL_ERROR "expected 'uint32_t n_layer = 2;' in ${test}, found none: llama.cpp has changed, see cmake/Archs.cmake")
    endif()
    file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/archs/test-llama-archs.inc CONTENT "${changed}" @ONLY)

    add_executable(asl-archs EXCLUDE_FROM_ALL native/archs/main.cpp)
    target_compile_definitions(asl-archs PRIVATE ASL_ARCHS_TEST="${CMAKE_BINARY_DIR}/archs/test-llama-archs.inc")
    target_include_directories(asl-archs PRIVATE ${llama_dir}/tests ${llama_dir}/src native/src native/include)
    target_link_libraries(asl-archs PRIVATE llama llama-common)
    set_target_properties(asl-archs PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
endfunction()
