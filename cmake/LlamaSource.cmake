# Where llama.cpp's source comes from, and the patches that go on it.

# Sets `out` to a llama.cpp source tree: ASL_LLAMA_CPP_DIR, or the one inside the pinned source distribution
# of llama-cpp-python, fetched with pip so that the user's indexes, mirrors and proxies apply.
function(asl_get_llama_source out)
    if (ASL_LLAMA_CPP_DIR)
        if (NOT EXISTS ${ASL_LLAMA_CPP_DIR}/src/llama-context.cpp)
            message(FATAL_ERROR "ASL_LLAMA_CPP_DIR: expected a llama.cpp source tree, got ${ASL_LLAMA_CPP_DIR}")
        endif()
        set(${out} ${ASL_LLAMA_CPP_DIR} PARENT_SCOPE)
        return()
    endif()

    file(READ ${CMAKE_CURRENT_SOURCE_DIR}/LLAMA_CPP_VERSION pin)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/LLAMA_CPP_VERSION)
    if (NOT pin MATCHES "llama-cpp-python ([^\n]+)\nsha256 ([0-9a-f]+)")
        message(FATAL_ERROR "LLAMA_CPP_VERSION: expected two lines, 'llama-cpp-python VERSION' and 'sha256 HEX', got:\n${pin}")
    endif()
    set(version ${CMAKE_MATCH_1})
    set(sha256  ${CMAKE_MATCH_2})

    set(folder  ${CMAKE_BINARY_DIR}/source)
    set(archive ${folder}/llama_cpp_python-${version}.tar.gz)
    set(tree    ${folder}/llama_cpp_python-${version}/vendor/llama.cpp)
    if (NOT EXISTS ${folder}/${sha256}.ok)
        if (NOT EXISTS ${archive})
            find_package(Python3 REQUIRED COMPONENTS Interpreter)
            message(STATUS "Downloading llama-cpp-python ${version} (source, about 75 MB)")
            # no build isolation: the metadata step then uses the build requirements that are installed already
            execute_process(
                COMMAND ${Python3_EXECUTABLE} -m pip download --no-binary :all: --no-deps --no-build-isolation
                        --disable-pip-version-check --dest ${folder} llama-cpp-python==${version}
                RESULT_VARIABLE status OUTPUT_VARIABLE log ERROR_VARIABLE log)
            if (NOT status EQUAL 0)
                message(FATAL_ERROR "pip could not download the source of llama-cpp-python ${version}:\n${log}\n"
                    "Check the connection and pip's configuration, or pass -DASL_LLAMA_CPP_DIR=... (a llama.cpp tree of that release).")
            endif()
        endif()
        file(SHA256 ${archive} actual)
        if (NOT actual STREQUAL sha256)
            file(REMOVE ${archive})
            message(FATAL_ERROR "llama-cpp-python ${version}: expected sha256 ${sha256}, got ${actual}. The file was removed; configure again.")
        endif()
        file(ARCHIVE_EXTRACT INPUT ${archive} DESTINATION ${folder} PATTERNS "llama_cpp_python-${version}/vendor/llama.cpp/*")
        file(REMOVE ${tree}/.git) # a submodule's pointer to nowhere, which stops git apply
        file(TOUCH ${folder}/${sha256}.ok)
    endif()
    set(${out} ${tree} PARENT_SCOPE)
endfunction()

# Applies every patch once: a patch that can be undone is there already. What was applied is remembered in the
# build directory, so that a patch that changed since is undone in its old form first.
function(asl_apply_patches tree patches)
    find_package(Git QUIET)
    if (NOT Git_FOUND)
        asl_apply_patches_once(${tree} ${patches})
        return()
    endif()
    # outside a repository git apply works on plain files; inside one it would skip paths it does not track
    # (for llama.cpp's own CMake files: nor is our commit the commit of llama.cpp)
    get_filename_component(ceiling ${tree} DIRECTORY)
    set(ENV{GIT_CEILING_DIRECTORIES} ${ceiling})
    file(GLOB files CONFIGURE_DEPENDS ${patches}/*.patch)
    list(SORT files)
    foreach(patch ${files})
        set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${patch})
        get_filename_component(name ${patch} NAME)
        set(applied ${CMAKE_BINARY_DIR}/applied/${name})
        asl_git_apply(${tree} missing --reverse --check ${patch})
        if (missing)
            if (EXISTS ${applied})
                asl_git_apply(${tree} failed --reverse ${applied})
            endif()
            asl_git_apply(${tree} failed ${patch})
            if (failed)
                message(FATAL_ERROR "${patch} does not apply to ${tree}:\n${failed}\n"
                    "Cause: another llama.cpp version than LLAMA_CPP_VERSION pins, or a tree changed by hand. "
                    "Remedy: remove ${CMAKE_BINARY_DIR} and build again, or regenerate the patch (patches/README.md).")
            endif()
            message(STATUS "Applied ${patch}")
        endif()
        configure_file(${patch} ${applied} COPYONLY)
    endforeach()
endfunction()

# The same without git, for `pip install` where there is none: patches go on a fresh tree, and never come off.
function(asl_apply_patches_once tree patches)
    find_package(Python3 REQUIRED COMPONENTS Interpreter)
    file(GLOB files ${patches}/*.patch)
    list(SORT files)
    foreach(patch ${files})
        get_filename_component(name ${patch} NAME)
        set(applied ${CMAKE_BINARY_DIR}/applied/${name})
        file(SHA256 ${patch} new)
        if (EXISTS ${applied})
            file(SHA256 ${applied} old)
            if (NOT old STREQUAL new)
                message(FATAL_ERROR "${patch} has changed. Expected git, to undo its old form; remove ${CMAKE_BINARY_DIR} and build again.")
            endif()
            continue()
        endif()
        # patch_ng takes git's a/ and b/ off by itself
        execute_process(COMMAND ${Python3_EXECUTABLE} -m patch_ng --quiet --strip 0 --directory ${tree} ${patch}
            RESULT_VARIABLE status OUTPUT_VARIABLE log ERROR_VARIABLE log)
        if (NOT status EQUAL 0)
            message(FATAL_ERROR "${patch} does not apply to ${tree}:\n${log}\n"
                "Expected the tree that LLAMA_CPP_VERSION pins, and git or patch-ng (pip install patch-ng).")
        endif()
        message(STATUS "Applied ${patch}")
        configure_file(${patch} ${applied} COPYONLY)
    endforeach()
endfunction()

# Runs `git apply` with the arguments in `tree`; `failed` receives what it printed, or nothing.
function(asl_git_apply tree failed)
    execute_process(COMMAND ${GIT_EXECUTABLE} apply ${ARGN} WORKING_DIRECTORY ${tree}
        RESULT_VARIABLE status OUTPUT_VARIABLE log ERROR_VARIABLE log)
    if (NOT status EQUAL 0)
        set(${failed} "git apply: ${log}" PARENT_SCOPE)
    else()
        set(${failed} "" PARENT_SCOPE)
    endif()
endfunction()
