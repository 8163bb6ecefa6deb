# llama.cpp's own server as a library, with native/server/ in it (ASL_BUILD_SERVER).

# Before llama.cpp's tree is added: options of its server.
function(asl_configure_server)
    if (NOT ASL_BUILD_SERVER)
        set(LLAMA_OPENSSL OFF CACHE BOOL "" FORCE) # nothing else speaks HTTPS
        return()
    endif()
    # for -hf; where OpenSSL is missing, llama.cpp says so and builds without
    set(LLAMA_OPENSSL ON CACHE BOOL "" FORCE)
    # the page is a download, or a build with npm
    set(LLAMA_USE_PREBUILT_UI OFF CACHE BOOL "download the server's web page at build time")
    # what /props and system_fingerprint say: the source has no git history
    file(READ ${CMAKE_CURRENT_SOURCE_DIR}/LLAMA_CPP_VERSION pin)
    file(READ ${CMAKE_CURRENT_SOURCE_DIR}/asl_gguf/_version.py version)
    string(REGEX MATCH "llama-cpp-python ([^\n]+)" unused "${pin}")
    set(base ${CMAKE_MATCH_1})
    string(REGEX MATCH "__version__ = \"([^\"]+)\"" unused "${version}")
    set(LLAMA_BUILD_NUMBER 0 CACHE STRING "" FORCE)
    set(LLAMA_BUILD_COMMIT "llama-cpp-python-${base}-asl-${CMAKE_MATCH_1}" CACHE STRING "" FORCE)
endfunction()

# After it: our sources in its targets, and what is installed.
macro(asl_add_server)
    set(ASL_SERVER_FOLDER ${CMAKE_CURRENT_SOURCE_DIR}/native/server)
    file(GLOB ASL_SERVER_SOURCES CONFIGURE_DEPENDS ${ASL_SERVER_FOLDER}/*.cpp)
    list(REMOVE_ITEM ASL_SERVER_SOURCES ${ASL_SERVER_FOLDER}/asl-serve-run.cpp)
    add_library(asl-server OBJECT ${ASL_SERVER_SOURCES})
    target_link_libraries(asl-server PRIVATE llama-common mtmd)
    target_include_directories(asl-server PRIVATE ${LLAMA_DIR} ${LLAMA_DIR}/tools/server)
    set_target_properties(asl-server PROPERTIES UNITY_BUILD ON POSITION_INDEPENDENT_CODE ON)
    target_sources(server-context PRIVATE $<TARGET_OBJECTS:asl-server>)
    # static libraries drop what nobody refers to: the entry points join the library itself
    target_sources(llama-server-impl PRIVATE ${ASL_SERVER_FOLDER}/asl-serve-run.cpp)
    foreach(target asl-server server-context)
        target_include_directories(${target} PUBLIC ${ASL_SERVER_FOLDER} ${CMAKE_CURRENT_SOURCE_DIR}/native/include)
    endforeach()
    if (NOT MSVC)
        set(ASL_WARNINGS "-Wall;-Wextra;$<$<BOOL:${ASL_WERROR}>:-Werror>")
        target_compile_options(asl-server PRIVATE ${ASL_WARNINGS} -Wno-unused-function) # in llama.cpp's headers
        set_source_files_properties(${ASL_SERVER_FOLDER}/asl-serve-run.cpp TARGET_DIRECTORY llama-server-impl
            PROPERTIES COMPILE_OPTIONS "${ASL_WARNINGS};-Wno-unused-function") # in llama.cpp's headers
    endif()
    asl_unite(llama-common "^json\\.cpp$") # where ordered_json is another type
    asl_unite(server-context "^server-(context|task)\\.cpp$") # as long as a batch each
    asl_unite(llama-server-impl "^$")
    asl_optimise_less(cpp-httplib "^$")
    asl_optimise_less(llama-common "^(json|peg-parser|sampling)\\.cpp$")
    asl_optimise_less(server-context "^server-context\\.cpp$")
    asl_optimise_less(llama-server-impl "^$")
    list(APPEND ASL_TARGETS mtmd llama-common llama-server-impl)
    install(FILES ${LLAMA_DIR}/vendor/cpp-httplib/LICENSE DESTINATION asl_gguf/lib RENAME LICENSE.cpp-httplib COMPONENT asl)
    install(FILES ${LLAMA_DIR}/licenses/LICENSE-jsonhpp DESTINATION asl_gguf/lib RENAME LICENSE.nlohmann-json COMPONENT asl)
endmacro()
