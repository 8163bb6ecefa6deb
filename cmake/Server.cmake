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
    target_sources(server-context PRIVATE ${ASL_SERVER_SOURCES})
    # static libraries drop what nobody refers to: the entry points join the library itself
    target_sources(llama-server-impl PRIVATE ${ASL_SERVER_FOLDER}/asl-serve-run.cpp)
    target_include_directories(server-context PUBLIC ${ASL_SERVER_FOLDER} ${CMAKE_CURRENT_SOURCE_DIR}/native/include)
    if (NOT MSVC)
        foreach(target server-context llama-server-impl)
            set_source_files_properties(${ASL_SERVER_SOURCES} ${ASL_SERVER_FOLDER}/asl-serve-run.cpp TARGET_DIRECTORY ${target}
                PROPERTIES COMPILE_OPTIONS "-Wall;-Wextra;$<$<BOOL:${ASL_WERROR}>:-Werror>")
        endforeach()
    endif()
    list(APPEND ASL_TARGETS mtmd llama-common llama-server-impl)
    install(FILES ${LLAMA_DIR}/vendor/cpp-httplib/LICENSE DESTINATION asl_gguf/lib RENAME LICENSE.cpp-httplib COMPONENT asl)
    install(FILES ${LLAMA_DIR}/licenses/LICENSE-jsonhpp DESTINATION asl_gguf/lib RENAME LICENSE.nlohmann-json COMPONENT asl)
endmacro()
