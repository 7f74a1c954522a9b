"""The keys of `config.json` that need no attention, and those that are read in every family."""

# Training, generation and bookkeeping: none of these changes what a forward pass computes.
HARMLESS_KEYS = frozenset(
    """
    _name_or_path add_cross_attention architectures attention_dropout attn_implementation auto_map
    bad_words_ids begin_suppress_tokens bos_token_id cache_implementation chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    embd_pdrop encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id full_attn_mod hidden_dropout id2label
    initializer_range interpolate_factor is_decoder is_encoder_decoder is_llama_config
    keys_to_ignore_at_inference label2id length_penalty max_length max_sequence_length max_window_layers
    min_length model_max_length model_type no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix
    problem_type pruned_heads remove_invalid_values repetition_penalty resid_pdrop return_dict
    return_dict_in_generate rope_interleaved sep_token_id seq_length suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class
    tokenizer_model_max_length tokenizer_padding_side top_k top_p torch_dtype torchscript
    transformers.js_config transformers_version typical_p unk_token_id unsloth_fixed unsloth_version
    use_bfloat16 use_cache use_flash_attn
    """.split()  # noqa: SIM905
)
READ_KEYS = frozenset(
    """
    attention_bias head_dim hidden_act hidden_size intermediate_size max_position_embeddings
    mlp_bias num_attention_heads num_hidden_layers num_key_value_heads pretraining_tp
    quantization_config rms_norm_eps rope_parameters rope_scaling rope_theta tie_word_embeddings
    vocab_size
    """.split()  # noqa: SIM905
)
PER_BLOCK_KEYS = ("layer_types", "no_rope_layers")
"""Lists with one entry a block, which are cut with the blocks. Any other list means something else, whatever
its length: a key that is neither read nor harmless was refused when the model was opened."""
