# Widths of single layers against one width for all, at about equal size: included by zero.mk and by ../real/Makefile.
# OUT has the receivers, %.st, and their pictures, images/; WIDTH_RECEIVERS are the names before .st, and
# WIDTH_GROUP the weights that share a scale in groups.

WAYS := rtn-2 rtn-2-group rtn-2.5 rtn-2.5-pictures rtn-3 rtn-3-group rtn-3.5 rtn-3.5-pictures \
	best-2 best-2-group best-2.5 best-3
rtn-2 := --bits 2
rtn-2-group := --bits 2 --group-size $(WIDTH_GROUP) --asymmetric --scale absmax --scale-dtype float16
rtn-2.5 := --bits 2.5 --no-rotate
rtn-2.5-pictures := --bits 2.5 --no-rotate --calib generated --calib-samples 256
rtn-3 := --bits 3 --no-rotate
rtn-3-group := --bits 3 --group-size $(WIDTH_GROUP) --asymmetric --scale absmax --scale-dtype float16
rtn-3.5 := --bits 3.5 --no-rotate
rtn-3.5-pictures := --bits 3.5 --no-rotate --calib generated --calib-samples 256
best-2 := --bits 2 --preset best
best-2-group := --bits 2 --preset best --group-size $(WIDTH_GROUP) --asymmetric --scale mse --scale-dtype float16
best-2.5 := --bits 2.5 --preset best
best-3 := --bits 3 --preset best

WIDTHS := $(dir $(lastword $(MAKEFILE_LIST)))widths.py

.PHONY: widths widths-cells
widths:
	@$(MAKE) -f $(firstword $(MAKEFILE_LIST)) --no-print-directory --jobs=2 --output-sync=target widths-cells
	python $(WIDTHS) $(OUT)/widths $(WAYS) > $(OUT)/widths/table.txt
	cp $(OUT)/widths/table.txt $(RESULTS)/widths.txt
	@cat $(RESULTS)/widths.txt

widths-cells: $(foreach w,$(WAYS),$(WIDTH_RECEIVERS:%=$(OUT)/widths/$(w)/%.json))

# $(1) is the way; what is measured is kept, and the model is not
define measured
$(OUT)/widths/$(1)/%.json: $(OUT)/%.st
	@mkdir -p $$(@D)
	qvec quantize $$< $($(1)) -o $$@.st --metrics $$@.quantize --force --quiet
	qvec eval $$@.st --data $(OUT)/images/$$(notdir $$*) -o $$@ --device cpu --force
	@rm $$@.st
endef
$(foreach w,$(WAYS),$(eval $(call measured,$(w))))
