# The zero-data study, make zero-shot: seven tasks, three seeds, three grids, no image of a receiver.
#
# Every rule can be cut off: make goes on with the files that are whole, qvec with --resume.

SHELL := /bin/bash
BIN ?= $(CURDIR)/../../.venv/bin
export PATH := $(BIN):$(PATH)
export OMP_NUM_THREADS := 1
# each of the many commands would compile all of torch anew
unexport PYTHONDONTWRITEBYTECODE

SEEDS := 0 1 2
# a width at which rounding collapses, on the paper's grid and on a better one, and one at which it does not
GRIDS := absmax-2 mse-full-2 mse-full-3
bits = $(lastword $(subst -, ,$(1)))
scale = $(patsubst %-$(call bits,$(1)),%,$(1))

OUT := out-zero
FASHION := /usr/share/datasets/fashion-mnist
TASKS := digits $(if $(wildcard $(FASHION)/train-images-idx3-ubyte.gz),fashion) \
	latin greek cyrillic armenian georgian
# digits and clothes name their classes 0 to 9, so that neither counts as a stranger to the other
NUMBERED := digits fashion
others = $(filter-out $(1) $(if $(filter $(1),$(NUMBERED)),$(NUMBERED)),$(TASKS))
LAMBDAS := 0,0.25,0.5,0.75,1,1.5
# how vectors are combined beside their mean: RULES="ties dare", 13 minutes of CPU more
RULES :=
RULED_LAMBDAS := 0,0.5,1
# of the moments that are kept as eigenpairs and a diagonal
RANK := 16
NULL_DONOR := greek
RESULTS := results

runs = $(foreach s,$(SEEDS),$(OUT)/s$(s)/$(1)/grid.jsonl)
judged = $(foreach s,$(SEEDS),$(foreach k,advise $(if $(RULES),rules),$(TASKS:%=$(OUT)/s$(s)/$(1)/%_$(k).json)))

.PHONY: zero-shot all clean
.DELETE_ON_ERROR:
.SECONDARY:

zero-shot:
	@$(MAKE) -f zero.mk --no-print-directory --jobs=2 --output-sync=target all
	@mkdir -p $(RESULTS)
	qvec plot $(call runs,$(firstword $(GRIDS))) -o $(RESULTS)/zero_heatmap.svg --force
	qvec plot $(call runs,$(firstword $(GRIDS))) --figure plane -o $(RESULTS)/zero_plane.svg --force
	python zero_shot.py $(OUT) $(GRIDS) > $(OUT)/table.txt
	mv $(OUT)/table.txt $(RESULTS)/zero_shot.txt
	python zero_shot.py --document $(RESULTS)/zero_shot.txt "A tiny ViT in 2 bits, mean of seven tasks" > $(RESULTS)/zero_shot.json
	qvec plot $(RESULTS)/zero_shot.json -o $(RESULTS)/bars.svg --force
	@cat $(RESULTS)/zero_shot.txt

all: $(foreach g,$(GRIDS),$(call runs,$(g)) $(call judged,$(g)))

$(OUT)/images: images.py
	mkdir -p $(OUT)
	python images.py $@.part --tasks $(TASKS) --fashion $(FASHION)
	rm -rf $@ && mv $@.part $@

# one card of the base serves every receiver
$(OUT)/card.st: base.st images.py
	mkdir -p $(OUT)
	python images.py $(OUT)/base.part --tasks base
	qvec moments $< --data $(OUT)/base.part/base -o $@ --force
	rm -rf $(OUT)/base.part

# --- what vectors and moments lose when they are stored small: make -f zero.mk small ---

$(OUT)/card_rank_half.st: base.st images.py
	mkdir -p $(OUT)
	python images.py $(OUT)/small.part --tasks base
	qvec moments $< --data $(OUT)/small.part/base --half -o $(OUT)/card_half.st --force
	qvec moments $< --data $(OUT)/small.part/base --rank $(RANK) -o $(OUT)/card_rank.st --force
	qvec moments $< --data $(OUT)/small.part/base --rank $(RANK) --half -o $@ --force
	rm -rf $(OUT)/small.part

.PHONY: small
small: small_vectors.py $(OUT)/card.st $(OUT)/card_rank_half.st $(foreach s,$(SEEDS),$(foreach t,$(TASKS),$(OUT)/s$(s)/$(t).st $(OUT)/s$(s)/absmax-2/$(t)_qat.st))
	python $< $(OUT) --tasks $(TASKS) --numbered $(NUMBERED) --seeds $(SEEDS) > $(OUT)/small.txt
	mkdir -p $(RESULTS)
	mv $(OUT)/small.txt $(RESULTS)/small_vectors.txt
	@cat $(RESULTS)/small_vectors.txt

# pictures that are not the receiver's: those of all other tasks, mixed. $(1) is the task
define pictures
$(OUT)/others/$(1): | $(OUT)/images
	rm -rf $$@ && mkdir -p $$@
	$(foreach o,$(call others,$(1)),ln -s ../../images/$(o)/train $$@/$(o) &&) true
endef
$(foreach t,$(TASKS),$(eval $(call pictures,$(t))))

# a model, and the statistics of its inputs: $(1) is the seed, $(2) the task
define model
$(OUT)/s$(1)/$(2).st: base.st recipe.yaml | $(OUT)/images
	mkdir -p $$(@D)
	qvec finetune $$< --data $(OUT)/images/$(2) --recipe recipe.yaml --seed $(1) -o $$@ --resume --force

$(OUT)/s$(1)/$(2)_moments.st: $(OUT)/s$(1)/$(2).st
	qvec moments $$< --data $(OUT)/images/$(2) -o $$@ --force

$(OUT)/s$(1)/$(2)_rank.st: $(OUT)/s$(1)/$(2).st
	qvec moments $$< --data $(OUT)/images/$(2) --rank $(RANK) -o $$@ --force

# statistics hang on no grid: those that one grid's vectors carry serve all
$(OUT)/s$(1)/$(2)_rank_rho.st: $(OUT)/s$(1)/$(2).st $(OUT)/s$(1)/$(firstword $(GRIDS))/$(2)_qat.st $(OUT)/s$(1)/$(2)_rank.st
	qvec extract $$(wordlist 1,2,$$^) --moments $$(lastword $$^) -o $$@ --force

$(OUT)/s$(1)/$(2)_rank_mean.st: $(foreach o,$(call others,$(2)),$(OUT)/s$(1)/$(o)_rank_rho.st)
	qvec combine $$^ -o $$@ --force

$(OUT)/s$(1)/$(2)_mean.st: $(foreach o,$(call others,$(2)),$(OUT)/s$(1)/$(firstword $(GRIDS))/$(o)_rho.st)
	qvec combine $$^ -o $$@ --force
endef
$(foreach s,$(SEEDS),$(foreach t,$(TASKS),$(eval $(call model,$(s),$(t)))))

# GPTQ without a vector, one of a width for all grids: $(1) is the seed, $(2) the task, $(3) the bits
GPTQ = qvec quantize $$< --bits $(3) --scale mse-full --method gptq -o $$@ --force
define calibrated
$(OUT)/s$(1)/$(2)_moments_$(3).st: $(OUT)/s$(1)/$(2).st $(OUT)/s$(1)/$(2)_mean.st
	$(GPTQ) --moments $$(lastword $$^)

$(OUT)/s$(1)/$(2)_ranked_$(3).st: $(OUT)/s$(1)/$(2).st $(OUT)/s$(1)/$(2)_rank_mean.st
	$(GPTQ) --moments $$(lastword $$^)

$(OUT)/s$(1)/$(2)_card_$(3).st: $(OUT)/s$(1)/$(2).st $(OUT)/card.st
	$(GPTQ) --moments $$(lastword $$^)

$(OUT)/s$(1)/$(2)_float_$(3).st: $(OUT)/s$(1)/$(2).st | $(OUT)/others/$(2)
	$(GPTQ) --calib $(OUT)/others/$(2) --calib-samples 256 --target float

# what quantize does if it is told no more, and what it makes of generated pictures
$(OUT)/s$(1)/$(2)_default_$(3).st: $(OUT)/s$(1)/$(2).st
	qvec quantize $$< --bits $(3) -o $$@ --force

$(OUT)/s$(1)/$(2)_best_$(3).st: $(OUT)/s$(1)/$(2).st
	qvec quantize $$< --bits $(3) --preset best -o $$@ --force

# for comparison only: the receiver's own images
$(OUT)/s$(1)/$(2)_own_$(3).st: $(OUT)/s$(1)/$(2).st | $(OUT)/images
	$(GPTQ) --calib $(OUT)/images/$(2) --calib-samples 256 --target float
endef
$(foreach s,$(SEEDS),$(foreach b,$(sort $(foreach g,$(GRIDS),$(call bits,$(g)))),$(foreach t,$(TASKS),$(eval $(call calibrated,$(s),$(t),$(b))))))

# what is made for a grid: $(1) is the seed, $(2) the task, $(3) the grid, $(4) their folder
define made
$(4)/$(2)_qat.st: base.st recipe.yaml | $(OUT)/images
	mkdir -p $$(@D)
	qvec train-qat $$< --data $(OUT)/images/$(2) --recipe recipe.yaml --seed $(1) --bits $(call bits,$(3)) --scale $(call scale,$(3)) -o $$@ --resume --force

$(4)/$(2)_rho.st: $(OUT)/s$(1)/$(2).st $(4)/$(2)_qat.st $(OUT)/s$(1)/$(2)_moments.st
	qvec extract $$(wordlist 1,2,$$^) --moments $$(lastword $$^) -o $$@ --force

$(RULES:%=$(4)/$(2)_%.st): $(4)/$(2)_%.st: $(foreach o,$(call others,$(2)),$(4)/$(o)_rho.st)
	qvec combine $$^ --rule $$* -o $$@ --force

$(4)/$(2)_rules.json: $(OUT)/s$(1)/$(2).st $(RULES:%=$(4)/$(2)_%.st) | $(OUT)/others/$(2)
	qvec sweep-lambda $$^ --objective agreement --proxy $(OUT)/others/$(2) --data $(OUT)/images/$(2) --lambdas $(RULED_LAMBDAS) -o $$@ --force

$(4)/$(2)_advise.json: $(OUT)/s$(1)/$(2).st $(foreach o,$(call others,$(2)),$(4)/$(o)_rho.st) | $(OUT)/others/$(2)
	qvec advise $$< --bits $(call bits,$(3)) $(foreach o,$(call others,$(2)),--rho $(4)/$(o)_rho.st) --proxy $(OUT)/others/$(2) --data $(OUT)/images/$(2) --device cpu --metrics $$@ --force
endef
$(foreach s,$(SEEDS),$(foreach g,$(GRIDS),$(foreach t,$(TASKS),$(eval $(call made,$(s),$(t),$(g),$(OUT)/s$(s)/$(g))))))

# baselines by name: $(1) is the seed, $(2) the task, $(3) the bits
named = gptq moments: $(OUT)/s$(1)/$(2)_moments_$(3).st, gptq rank $(RANK): $(OUT)/s$(1)/$(2)_ranked_$(3).st, gptq base card: $(OUT)/s$(1)/$(2)_card_$(3).st, gptq float target: $(OUT)/s$(1)/$(2)_float_$(3).st, gptq own images: $(OUT)/s$(1)/$(2)_own_$(3).st, quantize: $(OUT)/s$(1)/$(2)_default_$(3).st, quantize --preset best: $(OUT)/s$(1)/$(2)_best_$(3).st

# the matrix: $(1) is the seed, $(2) the grid, $(3) their folder
define grid
$(3)/grid.yaml: zero.mk
	mkdir -p $$(@D)
	@{ echo "base: base.st"; \
	echo "lambdas: $(LAMBDAS)"; \
	echo "nulls: random,shuffle,taskvec"; \
	echo "null-donors: $(NULL_DONOR)"; \
	echo "proxy: [$(foreach t,$(TASKS),$(OUT)/images/$(t)$(if $(filter-out $(lastword $(TASKS)),$(t)),$(comma)))]"; \
	echo "device: cpu"; \
	echo "receivers:"; \
	$(foreach t,$(TASKS),echo "  $(t): {model: $(OUT)/s$(1)/$(t).st, data: $(OUT)/images/$(t), qat: $(3)/$(t)_qat.st, baselines: {$(call named,$(1),$(t),$(call bits,$(2)))}}";) \
	echo "donors:"; \
	$(foreach t,$(TASKS),echo "  $(t): {rho: $(3)/$(t)_rho.st, model: $(OUT)/s$(1)/$(t).st}";) } > $$@

$(3)/grid.jsonl: $(3)/grid.yaml $(TASKS:%=$(3)/%_rho.st) $(TASKS:%=$(3)/%_qat.st) $(foreach k,moments ranked card float own default best,$(TASKS:%=$(OUT)/s$(1)/%_$(k)_$(call bits,$(2)).st))
	qvec transfer $$< -o $$@ --resume --force
endef
comma := ,
$(foreach s,$(SEEDS),$(foreach g,$(GRIDS),$(eval $(call grid,$(s),$(g),$(OUT)/s$(s)/$(g)))))

# widths of layers and groups: beside what zero-shot has made
WIDTH_RECEIVERS := $(foreach s,$(SEEDS),$(TASKS:%=s$(s)/%))
include widths.mk

clean:
	rm -rf $(OUT)
