# Read after every project(), upstream's own too: nothing of where this machine keeps its files gets into a module.

# What folders are called in the place of their paths (__FILE__). The file is named from the folder that ninja runs in,
# because nvcc hands no option on that has a space in it. It names a response file in turn, which compiler caches would
# read if it stood here, so that its paths were in their keys.
add_compile_options(
  "$<$<COMPILE_LANGUAGE:CXX>:-specs=../generated/prefixes.specs>"
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-specs=../generated/prefixes.specs>")

# A hash of a source's path gets into the names of its kernels that have no name outside. cudafe++ is told another path:
# the one below DCA_ROOT.
if(NOT COMMAND dca_name_sources)
  function(dca_name_sources)
    get_property(targets DIRECTORY PROPERTY BUILDSYSTEM_TARGETS)
    set(named "")
    foreach(target IN LISTS targets)
      get_target_property(sources ${target} SOURCES)
      foreach(source IN LISTS sources)
        if(source MATCHES "\\.cu$" AND NOT source IN_LIST named)
          list(APPEND named "${source}")
          get_filename_component(path "${source}" ABSOLUTE)
          file(RELATIVE_PATH name "${DCA_ROOT}" "${path}")
          set_property(SOURCE "${source}" APPEND PROPERTY COMPILE_OPTIONS "-Xcudafe=--orig_src_path_name=${name}")
        endif()
      endforeach()
    endforeach()
  endfunction()
endif()
cmake_language(DEFER CALL dca_name_sources)
