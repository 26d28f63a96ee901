# Bits of all layers, of single layers, and groups, from the file alone and on generated pictures: included by zero.mk and by
# ../real/Makefile. OUT has the receivers, %.st, and their pictures, images/; WIDTH_RECEIVERS are the names before .st.

WAYS := float rows-2 alone-2 rows-2.5 alone-2.5 pictures-2.5 rows-3 alone-3 rows-3.5 alone-3.5 pictures-3.5 alone-4 \
	best-2 best-2-groups best-2.5 best-3
WIDTH_TABLE := widths.txt
$(foreach b,2 2.5 3 3.5 4,$(eval alone-$(b) := --bits $(b)))
$(foreach b,2 2.5 3 3.5,$(eval rows-$(b) := --bits $(b) --granularity channel))
$(foreach b,2.5 3.5,$(eval pictures-$(b) := --bits $(b) --calib generated --calib-samples 256))
best-2 := --bits 2 --preset best
best-2-groups := --bits 2 --preset best --group-size 64 --asymmetric --scale mse --scale-dtype float16
best-2.5 := --bits 2.5 --preset best
best-3 := --bits 3 --preset best

WIDTHS := $(dir $(lastword $(MAKEFILE_LIST)))widths.py
WIDTH_CELLS := $(OUT)/$(basename $(WIDTH_TABLE))

.PHONY: widths widths-cells
widths:
	@$(MAKE) -f $(firstword $(MAKEFILE_LIST)) --no-print-directory --jobs=2 --output-sync=target widths-cells
	python $(WIDTHS) $(WIDTH_CELLS) $(WAYS) > $(WIDTH_CELLS)/table.txt
	cp $(WIDTH_CELLS)/table.txt $(RESULTS)/$(WIDTH_TABLE)
	@cat $(RESULTS)/$(WIDTH_TABLE)

widths-cells: $(foreach w,$(WAYS),$(WIDTH_RECEIVERS:%=$(WIDTH_CELLS)/$(w)/%.json))

# $(1) is the way; what is measured is kept, and the model is not
define measured
$(WIDTH_CELLS)/$(1)/%.json: $(OUT)/%.st
	@mkdir -p $$(@D)
	qvec quantize $$< $($(1)) -o $$@.st --metrics $$@.quantize --force --quiet
	qvec eval $$@.st --data $(OUT)/images/$$(notdir $$*) -o $$@ --device cpu --force
	@rm $$@.st
endef
$(foreach w,$(filter-out float,$(WAYS)),$(eval $(call measured,$(w))))

$(WIDTH_CELLS)/float/%.json: $(OUT)/%.st
	@mkdir -p $(@D)
	qvec eval $< --data $(OUT)/images/$(notdir $*) -o $@ --device cpu --force
