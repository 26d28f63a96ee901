# The tiny study, make study: seven tasks, each donor and receiver, three seeds, three grids of 2 bits.
#
# Every rule can be cut off: make goes on with the files that are whole, qvec with --resume.

SHELL := /bin/bash
BIN ?= $(CURDIR)/../../.venv/bin
export PATH := $(BIN):$(PATH)
export OMP_NUM_THREADS := 1
# each of the many commands would compile all of torch anew
unexport PYTHONDONTWRITEBYTECODE

BITS := 2
SEEDS := 0 1 2
GRIDS := absmax mse-full asymmetric
absmax := --bits $(BITS) --scale absmax
mse-full := --bits $(BITS) --scale mse-full
asymmetric := --bits $(BITS) --asymmetric

OUT := out-study
FASHION := /usr/share/datasets/fashion-mnist
TASKS := digits $(if $(wildcard $(FASHION)/train-images-idx3-ubyte.gz),fashion) \
	latin greek cyrillic armenian georgian
# vectors that carry nothing take the lengths of these donors' vectors
NULL_DONORS := greek digits
# GPTQ calibrates with the images of another task: never the receiver's
PROXY := greek
OTHER_PROXY := cyrillic

runs = $(foreach s,$(SEEDS),$(OUT)/s$(s)/$(1)/grid.jsonl)
RUNS := $(foreach g,$(GRIDS),$(call runs,$(g)))
# what README shows is kept here: whoever runs the study sees with git diff whether it came out the same
RESULTS := results

.PHONY: study all clean
.DELETE_ON_ERROR:
.SECONDARY:

study:
	@$(MAKE) -f study.mk --no-print-directory --jobs=2 --output-sync=target all
	@mkdir -p $(RESULTS)
	$(foreach g,$(GRIDS),qvec plot $(call runs,$(g)) -o $(RESULTS)/heatmap_$(g).svg --force &&) true
	qvec plot $(call runs,$(firstword $(GRIDS))) --figure plane -o $(RESULTS)/plane.svg --force
	qvec report $(RUNS) -o $(OUT)/report.html --force > $(RESULTS)/table.txt
	@cat $(RESULTS)/table.txt

all: $(RUNS)

$(OUT)/images: images.py
	mkdir -p $(OUT)
	python images.py $@.part --tasks $(TASKS) --fashion $(FASHION)
	rm -rf $@ && mv $@.part $@

# a model, its plain twin: $(1) is the seed, $(2) the task
define model
$(OUT)/s$(1)/$(2).st: base.st recipe.yaml | $(OUT)/images
	mkdir -p $$(@D)
	qvec finetune $$< --data $(OUT)/images/$(2) --recipe recipe.yaml --seed $(1) -o $$@ --resume --force
endef

# what is made for a grid: $(1) is the seed, $(2) the task, $(3) the grid
define twin
$(OUT)/s$(1)/$(3)/$(2)_qat.st: base.st recipe.yaml | $(OUT)/images
	mkdir -p $$(@D)
	qvec train-qat $$< --data $(OUT)/images/$(2) --recipe recipe.yaml --seed $(1) $($(3)) -o $$@ --resume --force

$(OUT)/s$(1)/$(3)/$(2)_rho.st: $(OUT)/s$(1)/$(2).st $(OUT)/s$(1)/$(3)/$(2)_qat.st
	qvec extract $$^ -o $$@ --force

$(OUT)/s$(1)/$(3)/$(2)_gptq.st: $(OUT)/s$(1)/$(2).st | $(OUT)/images
	mkdir -p $$(@D)
	qvec quantize $$< $($(3)) --method gptq --calib $(OUT)/images/$(if $(filter $(PROXY),$(2)),$(OTHER_PROXY),$(PROXY)) -o $$@ --force
endef

# the matrix: $(1) is the seed, $(2) the grid, $(3) their folder
define grid
$(3)/grid.yaml: study.mk
	mkdir -p $$(@D)
	@{ echo "base: base.st"; \
	echo "nulls: random,shuffle,taskvec"; \
	echo "null-donors: $(subst $() ,$(),$(foreach d,$(NULL_DONORS),$(d),))"; \
	echo "device: cpu"; \
	echo "receivers:"; \
	$(foreach t,$(TASKS),echo "  $(t): {model: $(OUT)/s$(1)/$(t).st, data: $(OUT)/images/$(t), qat: $(3)/$(t)_qat.st, baselines: {gptq: $(3)/$(t)_gptq.st}}";) \
	echo "donors:"; \
	$(foreach t,$(TASKS),echo "  $(t): {rho: $(3)/$(t)_rho.st, model: $(OUT)/s$(1)/$(t).st}";) } > $$@

$(3)/grid.jsonl: $(3)/grid.yaml $(TASKS:%=$(3)/%_rho.st) $(TASKS:%=$(3)/%_qat.st) $(TASKS:%=$(3)/%_gptq.st)
	qvec transfer $$< -o $$@ --resume --force
endef

$(foreach s,$(SEEDS),$(foreach t,$(TASKS),$(eval $(call model,$(s),$(t)))))
$(foreach s,$(SEEDS),$(foreach g,$(GRIDS),$(foreach t,$(TASKS),$(eval $(call twin,$(s),$(t),$(g))))))
$(foreach s,$(SEEDS),$(foreach g,$(GRIDS),$(eval $(call grid,$(s),$(g),$(OUT)/s$(s)/$(g)))))

clean:
	rm -rf $(OUT)
