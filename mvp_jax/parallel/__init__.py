"""Members over devices (`mapping`, `auto`, `fanout`) and work over hosts (`processes`)."""
