# Receivers that are far from every proxy, and took no part in shaping the generated pictures, make
# far: each way that needs no image of theirs, at 3 and at 2 bits, with three draws of pictures.
# Included by the Makefile, whose models it takes.

FAR_BITS := 3 2
FAR_DRAWS := 0 1 2
FAR_SAMPLES := 128
# own QAT at 2 bits only, where it is on the better grid: each takes as long as a receiver
FAR_QAT_2 := asymmetric2

.PHONY: far far-all
far:
	@$(MAKE) --no-print-directory --jobs=$(JOBS) --output-sync=target far-all
	@mkdir -p $(RESULTS)
	python far.py $(OUT)/far $(FAR_BITS) > $(OUT)/far.txt
	mv $(OUT)/far.txt $(RESULTS)/far.txt
	@cat $(RESULTS)/far.txt

FAR_CELLS := $(foreach b,$(FAR_BITS),$(FAR:%=$(OUT)/far/$(b)/%))
far-all: $(foreach k,$(FAR_DRAWS:%=advise_%) $(FAR_DRAWS:%=best_%) own default,$(FAR_CELLS:%=%_$(k).json))
far-all: $(FAR:%=$(OUT)/far/2/%_qat.json)

# the pictures of all tasks, mixed
$(OUT)/others/far: | $(TASKS:%=$(OUT)/images/%)
	rm -rf $@ && mkdir -p $@
	$(foreach o,$(TASKS),ln -s ../../images/$(o)/train $@/$(o) &&) true

# $(1) are the bits, $(2) the receiver
define distant
$(OUT)/far/$(1)/$(2)_advise_%.json: $(OUT)/$(2).st | $(OUT)/others/far
	mkdir -p $$(@D)
	qvec advise $$< --bits $(1) --proxy $(OUT)/others/far --proxy-samples $(FAR_SAMPLES) --draw $$* --refine 0 --data $(OUT)/images/$(2) --device cpu --metrics $$@ --force

$(OUT)/far/$(1)/$(2)_default.st: $(OUT)/$(2).st
	mkdir -p $$(@D)
	qvec quantize $$< --bits $(1) -o $$@ --force

$(OUT)/far/$(1)/$(2)_best_%.st: $(OUT)/$(2).st
	mkdir -p $$(@D)
	qvec quantize $$< --bits $(1) --preset best --draw $$* -o $$@ --force

# for comparison only: the receiver's own images, and its labels
$(OUT)/far/$(1)/$(2)_own.st: $(OUT)/$(2).st
	mkdir -p $$(@D)
	qvec quantize $$< --bits $(1) --scale mse --asymmetric --method gptq --target float --calib $(OUT)/images/$(2) --calib-samples $(FAR_SAMPLES) -o $$@ --force

$(OUT)/far/$(1)/$(2)_%.json: $(OUT)/far/$(1)/$(2)_%.st
	qvec eval $$< --data $(OUT)/images/$(2) -o $$@ --force
endef
$(foreach b,$(FAR_BITS),$(foreach t,$(FAR),$(eval $(call distant,$(b),$(t)))))

$(FAR:%=$(OUT)/far/2/%_qat.st): $(OUT)/far/2/%_qat.st: $(OUT)/%_$(FAR_QAT_2).st
	mkdir -p $(@D)
	qvec quantize $< -o $@ --force
