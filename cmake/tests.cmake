# Tests: C programs beside the source, busted specs, checks of the source itself.

# Limits in seconds; checked builds are slow.
set(_c_limit 120)
set(_spec_limit 180)
if(PERIGEE_SANITIZE OR PERIGEE_HOSTILE)
  set(_c_limit 600)
  set(_spec_limit 900)
endif()

if(_across_files)
  add_link_options(-fno-lto) # over a hundred programs, of which none is to be quick
endif()

# ---- one program per src/<layer>/<file>_test.c, linked with its own layer and those below --------
pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)
set(_below)
foreach(_layer ${_layers} host cli)
  list(APPEND _below $<TARGET_OBJECTS:perigee_${_layer}>)
  file(GLOB _tests CONFIGURE_DEPENDS src/${_layer}/*_test.c)
  add_custom_target(${_layer}_tests)
  foreach(_file ${_tests})
    get_filename_component(_name ${_file} NAME_WE)
    string(REGEX REPLACE "_test$" "" _short ${_name})
    add_executable(${_layer}_${_name} ${_file} ${_below})
    target_link_libraries(${_layer}_${_name} PRIVATE perigee_flags PkgConfig::CMOCKA
      PkgConfig::LIBUV Threads::Threads m)
    if(_layer MATCHES "^(host|cli)$")
      target_link_libraries(${_layer}_${_name} PRIVATE PkgConfig::LUA)
    endif()
    add_dependencies(${_layer}_tests ${_layer}_${_name})
    add_test(NAME perigee.${_layer}.${_short} COMMAND ${_layer}_${_name})
    set_tests_properties(perigee.${_layer}.${_short} PROPERTIES TIMEOUT ${_c_limit} LABELS c)
  endforeach()
endforeach()

# ---- plug-ins that are not as they should be, for spec/host/plugin_spec.lua ------------------------
file(GLOB _plugins CONFIGURE_DEPENDS spec/plugins/*.c)
foreach(_file ${_plugins})
  get_filename_component(_name ${_file} NAME_WE)
  add_library(plugin_${_name} MODULE ${_file})
  target_include_directories(plugin_${_name} PRIVATE include)
  set_target_properties(plugin_${_name} PROPERTIES PREFIX "" OUTPUT_NAME perigee_${_name}
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/spec_plugins)
endforeach()

# ---- what joins the namespaces of spec/net ---------------------------------------------------------
add_executable(net_wire spec/net/wire.c)
target_compile_definitions(net_wire PRIVATE _GNU_SOURCE)
target_compile_options(net_wire PRIVATE -Wall -Wextra)

# ---- one test per spec/**/*_spec.lua --------------------------------------------------------------
# busted by name of the interpreter: its own first line takes whatever `lua` is.
find_program(PERIGEE_LUA_PROGRAM NAMES lua5.4 lua54 lua)
find_program(PERIGEE_BUSTED_PROGRAM NAMES busted)
set(_spec_environment
  "PERIGEE_BIN=${CMAKE_BINARY_DIR}/perigee"
  "PERIGEE_BUILD=${CMAKE_BINARY_DIR}"
  "LUA_PATH=${PROJECT_SOURCE_DIR}/lua/?.lua\;${PROJECT_SOURCE_DIR}/lua/?/init.lua\;${PROJECT_SOURCE_DIR}/spec/?.lua\;\;"
  "LUA_CPATH=${CMAKE_BINARY_DIR}/lua/?.so\;\;")
if(PERIGEE_SANITIZE MATCHES "address")
  # lua5.4 is not instrumented, so the run-time has to be there first; leaks of the shell are not ours.
  execute_process(COMMAND ${CMAKE_C_COMPILER} -print-file-name=libasan.so
    OUTPUT_VARIABLE _asan OUTPUT_STRIP_TRAILING_WHITESPACE)
  list(APPEND _spec_environment "LD_PRELOAD=${_asan}" "ASAN_OPTIONS=detect_leaks=0")
endif()
file(GLOB_RECURSE _specs CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/spec spec/*_spec.lua)
if(PERIGEE_LUA_PROGRAM AND PERIGEE_BUSTED_PROGRAM)
  foreach(_spec ${_specs})
    string(REGEX REPLACE "_spec\\.lua$" "" _name ${_spec})
    string(REPLACE "/" "." _name ${_name})
    set(_run)
    set(_how TIMEOUT ${_spec_limit} LABELS spec)
    set(_when)
    if(_spec MATCHES "^net/")
      # Namespaces may be refused, and time is of the essence there: only with `ctest -C net`. They end with ctest.
      set(_run setpriv --pdeathsig KILL)
      set(_how TIMEOUT 600 LABELS net)
      set(_when CONFIGURATIONS net)
    endif()
    add_test(NAME perigee.spec.${_name} ${_when} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
      COMMAND ${_run} ${PERIGEE_LUA_PROGRAM} ${PERIGEE_BUSTED_PROGRAM} spec/${_spec})
    set_tests_properties(perigee.spec.${_name} PROPERTIES ${_how} ENVIRONMENT "${_spec_environment}")
  endforeach()
else()
  message(WARNING "lua5.4 or busted is missing: the specs will not be run")
endif()

# ---- what the fuzzers have found, and a few thousand inputs more ------------------------------------
file(GLOB _fuzzers CONFIGURE_DEPENDS spec/fuzz/fuzz_*.c)
foreach(_file ${_fuzzers})
  file(STRINGS ${_file} _has_main REGEX PERIGEE_FUZZ_MAIN)
  if(NOT _has_main)
    continue()
  endif()
  get_filename_component(_name ${_file} NAME_WE)
  string(REGEX REPLACE "^fuzz_" "" _short ${_name})
  file(GLOB _corpus CONFIGURE_DEPENDS spec/fuzz/corpus/${_short}/*)
  add_executable(${_name}_replay ${_file} ${_objects})
  target_compile_definitions(${_name}_replay PRIVATE PERIGEE_FUZZ_MAIN)
  target_link_libraries(${_name}_replay PRIVATE perigee_flags PkgConfig::LIBUV Threads::Threads m)
  add_test(NAME perigee.fuzz.${_short}.corpus COMMAND ${_name}_replay ${_corpus})
  add_test(NAME perigee.fuzz.${_short}.mutated COMMAND ${_name}_replay -n 5000)
  set_tests_properties(perigee.fuzz.${_short}.corpus perigee.fuzz.${_short}.mutated
    PROPERTIES TIMEOUT ${_c_limit} LABELS c)
endforeach()

# ---- checks of the source -------------------------------------------------------------------------
find_program(PERIGEE_LUACHECK_PROGRAM NAMES luacheck)
if(PERIGEE_LUACHECK_PROGRAM)
  add_test(NAME perigee.lint.luacheck WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
    COMMAND ${PERIGEE_LUACHECK_PROGRAM} --quiet --no-color lua spec examples bench)
  set_tests_properties(perigee.lint.luacheck PROPERTIES TIMEOUT 120 LABELS lint)
else()
  message(WARNING "luacheck is missing: Lua files will not be checked")
endif()

find_program(PERIGEE_CLANG_FORMAT_PROGRAM NAMES clang-format-14 clang-format)
file(GLOB_RECURSE _c_files CONFIGURE_DEPENDS
  src/*.[ch] include/*.h examples/*.c bench/*.[ch] spec/net/*.c spec/plugins/*.c)
if(PERIGEE_CLANG_FORMAT_PROGRAM)
  add_test(NAME perigee.lint.clang_format
    COMMAND ${PERIGEE_CLANG_FORMAT_PROGRAM} --dry-run -Werror --ferror-limit=5 ${_c_files})
  set_tests_properties(perigee.lint.clang_format PROPERTIES TIMEOUT 120 LABELS lint)
else()
  message(WARNING "clang-format is missing: the form of C files will not be checked")
endif()
