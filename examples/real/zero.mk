# The zero-data study on the pretrained ViT-S, make zero-shot: 3 bits on the paper's grid, and 2 bits
# with a zero point, where own QAT is weak too. Included by the Makefile, whose models it takes.

ZERO := absmax asymmetric2
# digits, mnist and clothes name their classes 0 to 9, so that none counts as a stranger to the others
NUMBERED := fashion mnist digits
others = $(filter-out $(1) $(if $(filter $(1),$(NUMBERED)),$(NUMBERED)),$(TASKS))
# the matrix: every donor; at 2 bits, where none is of use, a near one and a far one. advise has the
# vectors of all tasks, and GPTQ on their moments
absmax_donors := $(TASKS)
asymmetric2_donors := greek photos
ZERO_NULL := greek
ZERO_LAMBDAS := 0,0.1,0.25,1
ZERO_SAMPLES := 128
# refinement was tried on the digits, where it gained nothing: a third of advise's time
ZERO_STEPS := 0
comma := ,

.PHONY: zero-shot zero
zero-shot:
	@$(MAKE) --no-print-directory --jobs=$(JOBS) --output-sync=target zero
	@mkdir -p $(RESULTS)
	qvec plot $(OUT)/zero/absmax/grid.jsonl -o $(RESULTS)/zero_heatmap.svg --force
	qvec plot $(OUT)/zero/absmax/grid.jsonl --figure plane -o $(RESULTS)/zero_plane.svg --force
	python ../tiny/zero_shot.py $(OUT) $(ZERO) > $(OUT)/zero.txt
	mv $(OUT)/zero.txt $(RESULTS)/zero_shot.txt
	python ../tiny/zero_shot.py --document $(RESULTS)/zero_shot.txt "A pretrained ViT-S in 3 bits, mean of seven tasks" > $(RESULTS)/zero_shot.json
	qvec plot $(RESULTS)/zero_shot.json -o $(RESULTS)/bars.svg --force
	@cat $(RESULTS)/zero_shot.txt

zero: $(foreach g,$(ZERO),$(OUT)/zero/$(g)/grid.jsonl $(TASKS:%=$(OUT)/zero/$(g)/%_advise.json))

# pictures that are not the receiver's: those of all other tasks, mixed. $(1) is the task
define pictures
$(OUT)/others/$(1): | $(foreach o,$(call others,$(1)),$(OUT)/images/$(o))
	rm -rf $$@ && mkdir -p $$@
	$(foreach o,$(call others,$(1)),ln -s ../../images/$(o)/train $$@/$(o) &&) true
endef
$(foreach t,$(TASKS),$(eval $(call pictures,$(t))))

$(TASKS:%=$(OUT)/%_moments.st): $(OUT)/%_moments.st: $(OUT)/%.st
	qvec moments $< --data $(OUT)/images/$* -o $@ --force

# $(1) is the grid of the vectors, $(2) a task
define made
$(OUT)/zero/$(1)/$(2)_rho.st: $(OUT)/$(2).st $(OUT)/$(2)_$(1).st $(OUT)/$(2)_moments.st
	mkdir -p $$(@D)
	qvec extract $$(wordlist 1,2,$$^) --moments $$(lastword $$^) -o $$@ --force

# what quantize does if it is told no more, and what it makes of generated pictures
$(OUT)/zero/$(1)/$(2)_default.st: $(OUT)/$(2).st
	mkdir -p $$(@D)
	qvec quantize $$< $(firstword $($(1))) $(word 2,$($(1))) -o $$@ --force

$(OUT)/zero/$(1)/$(2)_best.st: $(OUT)/$(2).st
	mkdir -p $$(@D)
	qvec quantize $$< $(firstword $($(1))) $(word 2,$($(1))) --preset best -o $$@ --force

# for comparison only: the receiver's own images
$(OUT)/zero/$(1)/$(2)_own.st: $(OUT)/$(2).st
	mkdir -p $$(@D)
	qvec quantize $$< $(firstword $($(1))) $(word 2,$($(1))) --scale mse --asymmetric --method gptq --target float --calib $(OUT)/images/$(2) --calib-samples $(ZERO_SAMPLES) -o $$@ --force

$(OUT)/zero/$(1)/$(2)_advise.json: $(OUT)/$(2).st $(foreach o,$(call others,$(2)),$(OUT)/zero/$(1)/$(o)_rho.st) | $(OUT)/others/$(2)
	qvec advise $$< $(firstword $($(1))) $(word 2,$($(1))) $(foreach o,$(call others,$(2)),--rho $(OUT)/zero/$(1)/$(o)_rho.st) --proxy $(OUT)/others/$(2) --proxy-samples $(ZERO_SAMPLES) --refine $(ZERO_STEPS) --data $(OUT)/images/$(2) --device cpu --metrics $$@ --force
endef
$(foreach g,$(ZERO),$(foreach t,$(TASKS),$(eval $(call made,$(g),$(t)))))

# $(1) is the grid
define matrix
$(OUT)/zero/$(1)/grid.yaml: zero.mk
	mkdir -p $$(@D)
	@{ echo "base: $(OUT)/base.st"; \
	echo "nulls: random"; \
	echo "null-donors: $(ZERO_NULL)"; \
	echo "lambdas: $(ZERO_LAMBDAS)"; \
	echo "proxy: [$(subst $() ,$(comma),$(TASKS:%=$(OUT)/images/%))]"; \
	echo "proxy-samples: $(ZERO_SAMPLES)"; \
	echo "device: cpu"; \
	echo "receivers:"; \
	$(foreach t,$(TASKS),echo "  $(t): {model: $(OUT)/$(t).st, data: $(OUT)/images/$(t), qat: $(OUT)/$(t)_$(1).st, baselines: {gptq own images: $(OUT)/zero/$(1)/$(t)_own.st, quantize: $(OUT)/zero/$(1)/$(t)_default.st, quantize --preset best: $(OUT)/zero/$(1)/$(t)_best.st}}";) \
	echo "donors:"; \
	$(foreach t,$($(1)_donors),echo "  $(t): $(OUT)/zero/$(1)/$(t)_rho.st";) } > $$@

$(OUT)/zero/$(1)/grid.jsonl: $(OUT)/zero/$(1)/grid.yaml $(foreach k,rho own default best,$(TASKS:%=$(OUT)/zero/$(1)/%_$(k).st))
	qvec transfer $$< -o $$@ --resume --force
endef
$(foreach g,$(ZERO),$(eval $(call matrix,$(g))))
