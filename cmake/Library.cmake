# libbusbar: every module's objects as one shared and one static library, and what is installed.
# Included after the modules and before what uses the library.

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

get_property(modules GLOBAL PROPERTY BUSBAR_MODULES)
get_property(ready_objects GLOBAL PROPERTY BUSBAR_OBJECTS)
get_property(libraries GLOBAL PROPERTY BUSBAR_LIBRARIES)
list(REMOVE_DUPLICATES libraries)
set(objects "")
foreach(module IN LISTS modules)
    list(APPEND objects $<TARGET_OBJECTS:bb_${module}_objects>)
endforeach()
set_source_files_properties(${ready_objects} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)


foreach(kind shared static)
    string(TOUPPER ${kind} KIND)
    add_library(busbar_${kind} ${KIND} ${objects} ${ready_objects})
    add_dependencies(busbar_${kind} bb_base)
    set_target_properties(busbar_${kind} PROPERTIES
        OUTPUT_NAME busbar EXPORT_NAME ${kind} LINKER_LANGUAGE C
        VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR})
    target_include_directories(busbar_${kind} INTERFACE
        $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
    # Plain names: what is installed must not lead to targets that exist in this build only.
    target_link_libraries(busbar_${kind} PRIVATE ${URCU_LIBRARIES} ${libraries} pthread)
    target_link_options(busbar_${kind} PRIVATE $<TARGET_PROPERTY:bb_flags,INTERFACE_LINK_OPTIONS>)
endforeach()

set(map ${PROJECT_SOURCE_DIR}/cmake/busbar.map)
target_link_options(busbar_shared PRIVATE LINKER:--version-script=${map} LINKER:-Bsymbolic-functions)
set_target_properties(busbar_shared PROPERTIES LINK_DEPENDS ${map})
if(NOT BUSBAR_SANITIZE)
    target_link_options(busbar_shared PRIVATE LINKER:--no-undefined)
endif()

execute_process(COMMAND ${PROJECT_SOURCE_DIR}/tools/public-headers
    OUTPUT_VARIABLE headers OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
string(REPLACE "\n" ";" headers "${headers}")
foreach(header IN LISTS headers)
    get_filename_component(directory ${header} DIRECTORY)
    install(FILES ${header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/busbar/${directory}
        COMPONENT library)
endforeach()

install(TARGETS busbar_shared busbar_static EXPORT busbarTargets
    LIBRARY COMPONENT library ARCHIVE COMPONENT library)
set(cmake_directory ${CMAKE_INSTALL_LIBDIR}/cmake/busbar)
install(EXPORT busbarTargets NAMESPACE busbar:: DESTINATION ${cmake_directory} COMPONENT library)
configure_package_config_file(cmake/busbarConfig.cmake.in busbarConfig.cmake
    INSTALL_DESTINATION ${cmake_directory})
write_basic_package_version_file(busbarConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/busbarConfig.cmake
    ${CMAKE_CURRENT_BINARY_DIR}/busbarConfigVersion.cmake
    DESTINATION ${cmake_directory} COMPONENT library)

# From the directory of busbar.pc back to the prefix, so that an installation can be moved.
file(RELATIVE_PATH BUSBAR_PC_TO_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(cmake/busbar.pc.in busbar.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/busbar.pc
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT library)
