# How busbar's targets are made: bb_module() for a module of the library, bb_test() for a suite.

set(CMAKE_C_STANDARD 17)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE Release)
endif()

set(BUSBAR_SANITIZE "" CACHE STRING "Sanitizers for the library and tests: address,undefined or thread")

find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
pkg_check_modules(URCU REQUIRED IMPORTED_TARGET liburcu-memb)

# Warnings, visibility and sanitizers travel in one interface target, so that freestanding payloads
# built by the same project do not inherit them.
add_library(bb_flags INTERFACE)
target_compile_options(bb_flags INTERFACE -Wall -Wextra -Wconversion -Wno-sign-conversion
    -Wstrict-prototypes -Wmissing-prototypes -fvisibility=hidden -fno-omit-frame-pointer)
target_link_libraries(bb_flags INTERFACE Threads::Threads PkgConfig::URCU)
if(BUSBAR_SANITIZE)
    target_compile_options(bb_flags INTERFACE -fsanitize=${BUSBAR_SANITIZE} -fno-sanitize-recover=all)
    target_link_options(bb_flags INTERFACE -fsanitize=${BUSBAR_SANITIZE})
endif()

# bb_module(NAME SOURCES file... [DEPENDS module...])
# An object library bb_NAME_objects (libbusbar is made of these) and a static library bb_NAME over
# it, so that a module's tests link that module and what it stands on, and nothing above it.
function(bb_module name)
    cmake_parse_arguments(M "" "" "SOURCES;DEPENDS;LIBRARIES" ${ARGN})
    add_library(bb_${name}_objects OBJECT ${M_SOURCES})
    target_link_libraries(bb_${name}_objects PUBLIC bb_flags ${M_LIBRARIES})
    add_library(bb_${name} STATIC $<TARGET_OBJECTS:bb_${name}_objects>)
    target_link_libraries(bb_${name} PUBLIC bb_flags ${M_LIBRARIES})
    foreach(dep IN LISTS M_DEPENDS)
        target_link_libraries(bb_${name} PUBLIC bb_${dep})
    endforeach()
    set_property(GLOBAL APPEND PROPERTY BUSBAR_MODULES ${name})
endfunction()

# bb_test(NAME SOURCES file... LINK target...)
# A Criterion suite, registered with ctest.
function(bb_test name)
    cmake_parse_arguments(T "" "" "SOURCES;LINK" ${ARGN})
    add_executable(${name} ${T_SOURCES})
    target_link_libraries(${name} PRIVATE bb_flags ${T_LINK} criterion)
    add_test(NAME ${name} COMMAND ${name})
endfunction()
