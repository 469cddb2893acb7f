# How busbar's targets are made: bb_module() for a module of the library, bb_test() for a suite,
# bb_script_test() for a test that is a command, bb_fuzz() for a fuzz target, bb_package() for what the
# build needs from the system.

set(CMAKE_C_STANDARD 17)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release)
endif()

set(BUSBAR_SANITIZE "" CACHE STRING "Sanitizers for the library and tests: address,undefined or thread")

option(BUSBAR_FUZZ "Build the fuzz targets (needs clang)" OFF)
option(BUSBAR_COVERAGE "Count executed lines, for the target `coverage`" OFF)

find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

# bb_package(PREFIX MODULE PACKAGE)
# pkg_check_modules() for what can't be done without, saying where it is to be had.
macro(bb_package prefix module package)
    pkg_check_modules(${prefix} QUIET IMPORTED_TARGET ${module})
    if(NOT ${prefix}_FOUND)
        message(FATAL_ERROR "${module} is missing: install ${package} and configure again, or run "
            "./dev, which does both")
    endif()
endmacro()

bb_package(URCU liburcu-memb liburcu-dev)

# Warnings, visibility and sanitizers travel in one interface target, so that freestanding payloads
# built by the same project do not inherit them.
add_library(bb_flags INTERFACE)
# Empty, as sources that define it themselves have it, so that the two agree.
target_compile_definitions(bb_flags INTERFACE _GNU_SOURCE=)
target_compile_options(bb_flags INTERFACE -Wall -Wextra -Wconversion -Wno-sign-conversion
    -Wstrict-prototypes -Wmissing-prototypes -fvisibility=hidden $<$<NOT:$<CONFIG:Release>>:-fno-omit-frame-pointer>)
# Calls within the library bind within it: neither they nor inlining need allow for another
# definition of a public function in the process. With Library.cmake's -Bsymbolic-functions.
target_compile_options(bb_flags INTERFACE -fno-semantic-interposition)
target_link_libraries(bb_flags INTERFACE Threads::Threads PkgConfig::URCU)
if(BUSBAR_SANITIZE)
    target_compile_options(bb_flags INTERFACE -fsanitize=${BUSBAR_SANITIZE} -fno-sanitize-recover=all)
    target_link_options(bb_flags INTERFACE -fsanitize=${BUSBAR_SANITIZE})
endif()
if(BUSBAR_FUZZ)
    target_compile_options(bb_flags INTERFACE -fsanitize=fuzzer-no-link)
    target_link_options(bb_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
if(BUSBAR_COVERAGE)
    target_compile_options(bb_flags INTERFACE --coverage -fprofile-update=atomic)
    target_link_options(bb_flags INTERFACE --coverage)
    add_custom_target(coverage USES_TERMINAL
        COMMAND ${PROJECT_SOURCE_DIR}/tools/coverage ${PROJECT_SOURCE_DIR} ${CMAKE_BINARY_DIR})
endif()

# Leaves out, with a warning, sources that are not there yet, and configures again once they are.
function(bb_present_sources out)
    set(present "")
    foreach(source IN LISTS ARGN)
        get_source_file_property(generated ${source} GENERATED)
        file(GLOB found CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} ${source})
        if(found OR generated OR source MATCHES "\\$<")
            list(APPEND present ${source})
        else()
            message(WARNING "${source} is missing; left out")
        endif()
    endforeach()
    set(${out} ${present} PARENT_SCOPE)
endfunction()

# bb_module(NAME SOURCES file... [DEPENDS module...] [LIBRARIES library...] [OBJECTS file...])
# An object library bb_NAME_objects (libbusbar is made of these) and a static library bb_NAME over
# it, so that a module's tests link that module and what it stands on, and nothing above it. OBJECTS
# are ready-made ones, generated in the module's own directory.
function(bb_module name)
    cmake_parse_arguments(M "" "" "SOURCES;DEPENDS;LIBRARIES;OBJECTS" ${ARGN})
    bb_present_sources(M_SOURCES ${M_SOURCES})
    if(NOT M_SOURCES)
        return()
    endif()
    add_library(bb_${name}_objects OBJECT ${M_SOURCES})
    target_link_libraries(bb_${name}_objects PUBLIC bb_flags ${M_LIBRARIES})
    set_source_files_properties(${M_OBJECTS} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
    add_library(bb_${name} STATIC $<TARGET_OBJECTS:bb_${name}_objects> ${M_OBJECTS})
    target_link_libraries(bb_${name} PUBLIC bb_flags ${M_LIBRARIES})
    foreach(dep IN LISTS M_DEPENDS)
        target_link_libraries(bb_${name} PUBLIC bb_${dep})
    endforeach()
    set_property(GLOBAL APPEND PROPERTY BUSBAR_MODULES ${name})
    set_property(GLOBAL APPEND PROPERTY BUSBAR_OBJECTS ${M_OBJECTS})
    set_property(GLOBAL APPEND PROPERTY BUSBAR_LIBRARIES ${M_LIBRARIES})
endfunction()

# What the suites run on: Criterion, or under ThreadSanitizer, where Criterion can't start, a small
# stand-in for it that is included by the same name.
if(BUSBAR_TESTS)
    set(support ${PROJECT_SOURCE_DIR}/tests/support)
    if(BUSBAR_SANITIZE MATCHES thread)
        add_library(bb_test_runner OBJECT ${support}/tsan_shim/runner.c)
        target_include_directories(bb_test_runner PUBLIC ${support}/tsan_shim)
        target_link_libraries(bb_test_runner PUBLIC bb_flags m)
    else()
        find_library(CRITERION_LIBRARY criterion)
        if(NOT CRITERION_LIBRARY)
            message(FATAL_ERROR "Criterion is missing: install libcriterion-dev, or configure with "
                "-DBUSBAR_TESTS=OFF")
        endif()
        add_library(bb_test_runner OBJECT ${support}/registered.c)
        target_link_libraries(bb_test_runner PUBLIC bb_flags ${CRITERION_LIBRARY})
    endif()
endif()

set(BUSBAR_RUN_SUITE ${PROJECT_SOURCE_DIR}/tests/support/run-suite)
set(BUSBAR_SKIP_DIR ${CMAKE_BINARY_DIR}/skips)

# bb_test(NAME SOURCES file... LINK target...)
# A Criterion suite, registered with ctest. It fails where it runs fewer tests than it registers.
function(bb_test name)
    cmake_parse_arguments(T "" "" "SOURCES;LINK" ${ARGN})
    bb_present_sources(T_SOURCES ${T_SOURCES})
    if(NOT T_SOURCES)
        return()
    endif()
    add_executable(${name} ${T_SOURCES} $<TARGET_OBJECTS:bb_test_runner>)
    target_link_libraries(${name} PRIVATE bb_test_runner ${T_LINK})
    add_test(NAME ${name}
        COMMAND ${BUSBAR_RUN_SUITE} ${name} ${BUSBAR_SKIP_DIR} $<TARGET_FILE:${name}>)
endfunction()

# bb_script_test(NAME COMMAND command arg...)
# A test that is a command: status 0 passes, 77 is a skip whose last line of output says why.
function(bb_script_test name)
    cmake_parse_arguments(T "" "" "COMMAND" ${ARGN})
    add_test(NAME ${name}
        COMMAND ${BUSBAR_RUN_SUITE} --script ${name} ${BUSBAR_SKIP_DIR} ${T_COMMAND})
    set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77)
endfunction()

# bb_fuzz(NAME SOURCES file... LINK target...)
# A libFuzzer target: its sources define LLVMFuzzerTestOneInput. Built where BUSBAR_FUZZ is on, into
# fuzz/ of the build directory, where `./dev long` finds it.
function(bb_fuzz name)
    if(NOT BUSBAR_FUZZ)
        return()
    endif()
    cmake_parse_arguments(T "" "" "SOURCES;LINK" ${ARGN})
    add_executable(${name} ${T_SOURCES})
    target_link_libraries(${name} PRIVATE bb_flags ${T_LINK} -fsanitize=fuzzer)
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
endfunction()
